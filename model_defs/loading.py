"""From a file or a preset's name to a `Spec`, with every mistake reported where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from ringc.errors import SpecError, did_you_mean
from ringc.model_defs.presets import list_presets, preset_path
from ringc.model_defs.source import KeyPath, Source, Span, at, parse, read_text
from ringc.model_defs.spec import INCONSISTENT, Section, Spec

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


def load_spec(path_or_preset: str | Path) -> Spec:
    """Reads a spec.

    A string that is exactly a preset's name means the preset, even where a file of that name exists; write `./ring-tiny` for the file.

    Args:
        path_or_preset: path of a YAML file, or a name of `list_presets()`.

    Raises:
        SpecError: the file can't be read, is not YAML, or doesn't describe a model. It shows the first mistake of the file with its line
            and lists the others.
    """
    if isinstance(path_or_preset, str) and path_or_preset in list_presets():
        path = preset_path(path_or_preset)
    else:
        path = Path(path_or_preset)
        if not _may_exist(path) and len(path.parts) == 1 and path.suffix not in (".yaml", ".yml"):
            near = did_you_mean(str(path_or_preset), list_presets())
            help_ = f"{near} " if near else ""
            raise SpecError(
                f"there is no spec file and no preset named '{path_or_preset}'",
                help=f"{help_}presets: {', '.join(list_presets())}",
            )
    return parse_spec(read_text(path), str(path))


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # reading it will say what is wrong with the path
        return True


def parse_spec(text: str, file: str = "<text>") -> Spec:
    """Reads a spec from YAML text; `file` is the name that messages give it.

    Raises:
        SpecError: as `load_spec`.
    """
    from pydantic import ValidationError

    source = parse(text, file)
    try:
        return Spec.model_validate(source.value)
    except ValidationError as error:
        raise _spec_error(error, source) from None


class Mistake(NamedTuple):
    """One thing that is wrong with the values of a spec, by its path; `on_key` if the key itself is wrong rather than its value."""

    path: KeyPath
    message: str
    help: str
    on_key: bool = False


def _spec_error(error: ValidationError, source: Source) -> SpecError:
    placed = sorted(
        ((source.place(_span(mistake, source)), mistake) for mistake in mistakes(error)),
        key=lambda item: (item[0].line or 0, item[0].column or 0),
    )
    (place, first), *others = placed
    help_ = first.help
    if others:
        # A mistake of a part that is used several times is found as often.
        also = dict.fromkeys(f"  also: {at_}: {mistake.message}" for at_, mistake in others)
        also.pop(f"  also: {place}: {first.message}", None)
        help_ = "\n".join([help_, *also])
    return SpecError(first.message, place=place, help=help_)


def _span(mistake: Mistake, source: Source) -> Span | None:
    if not mistake.on_key and mistake.path in source.values:
        span = source.values[mistake.path]
        # A section's value is many lines: its key is the better place, except in `key: {...}`, where both are.
        return source.keys.get(mistake.path, span) if isinstance(at(source.value, mistake.path), dict) else span
    for length in range(len(mistake.path), 0, -1):
        if mistake.path[:length] in source.keys:
            return source.keys[mistake.path[:length]]
    return Span(0, 0, 1)


def mistakes(error: ValidationError) -> Iterator[Mistake]:
    """The errors of pydantic in the words of the spec language, and without pydantic's own path elements.

    A key that is missing because it is misspelt is reported once, as the unknown key that it is.
    """
    all_details = error.errors(include_url=False)
    unknown = [details["loc"] for details in all_details if details["type"] == "extra_forbidden"]
    for details in all_details:
        loc = details["loc"]
        siblings = [str(other[-1]) for other in unknown if other[:-1] == loc[:-1]]
        if details["type"] == "missing" and did_you_mean(str(loc[-1]), siblings):
            continue
        if details["type"] == INCONSISTENT:
            for problem in details.get("ctx", {})["problems"]:
                yield Mistake(problem.path, problem.message, problem.help)
        else:
            yield _mistake(details)


def _mistake(details: ErrorDetails) -> Mistake:
    kind, context = details["type"], details.get("ctx", {})
    path, section = _resolve(details["loc"])
    name = dotted(path)
    if kind == "extra_forbidden":
        known = list(section.model_fields)
        help_ = did_you_mean(str(path[-1]), known) or f"known keys: {', '.join(known)}"
        return Mistake(path, f"unknown key '{path[-1]}' in {_owner(path)}", help_, on_key=True)
    if kind == "missing":
        return Mistake(
            path, f"{_owner(path)} lacks the key '{path[-1]}'", f"add `{path[-1]}`: {_description(section, path[-1])}"
        )
    if kind == "union_tag_not_found":
        return Mistake(
            (*path, "kind"), f"'{name}' lacks the key 'kind'", f"add `kind`: one of {', '.join(_decay_kinds())}"
        )
    if kind == "union_tag_invalid":
        given, choices = str(context["tag"]), _decay_kinds()
        return Mistake((*path, "kind"), f"'{name}.kind' is {given}, which is not known", _choose(given, choices))
    if kind == "literal_error":
        choices = [m.group().strip("'") for m in re.finditer(r"'[^']*'|\d+", str(context["expected"]))]
        return Mistake(path, f"'{name}' is {show(details['input'])}", _choose(str(details["input"]), choices))
    wanted = _WANTED.get(kind, details["msg"]).format_map(context)
    message = f"'{name}' must be {wanted}, not {show(details['input'])}" if kind in _WANTED else f"'{name}': {wanted}"
    return Mistake(
        path, message, _description(section, next((step for step in reversed(path) if isinstance(step, str)), ""))
    )


_WANTED = {
    "int_type": "an integer",
    "int_parsing_size": "an integer of reasonable size",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "made of letters, digits, '.', '_' and '-'",
    "string_too_long": "at most {max_length} characters long",
    "too_long": "a list of {max_length}",
    "too_short": "a list of {min_length}",
}


def _resolve(loc: tuple[str | int, ...]) -> tuple[KeyPath, type[Section]]:
    """pydantic's location as a path in the values, and the class of the section that holds its last element.

    pydantic puts the chosen kind of a union into the location; it is no key of the file.
    """
    path: list[str | int] = []
    section: type[Section] = Spec
    in_union = False
    for step in loc:
        if in_union:
            section = next(c for c in _decay_classes() if get_args(c.model_fields["kind"].annotation) == (step,))
            in_union = False
            continue
        if path:
            section = _section_class(section, path[-1]) or section
        path.append(step)
        in_union = path[-2:] == ["linear", "decay"]
    return tuple(path), section


def _decay_classes() -> tuple[type[Section], ...]:
    from ringc.model_defs.spec import Decay

    classes: tuple[type[Section], ...] = get_args(get_args(Decay)[0])
    return classes


def _decay_kinds() -> list[str]:
    return [str(get_args(c.model_fields["kind"].annotation)[0]) for c in _decay_classes()]


def _section_class(section: type[Section], name: str | int) -> type[Section] | None:
    """The class of a section's field, if the field is itself one section (or null)."""
    field = section.model_fields.get(str(name))
    if field is None:
        return None
    kinds = [
        k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type) and issubclass(k, Section)
    ]
    return kinds[0] if len(kinds) == 1 else None


def _description(section: type[Section], name: str | int) -> str:
    field = section.model_fields.get(str(name))
    if field is None:
        return "see `ringc schema`"
    if field.description:
        return field.description
    inner = _section_class(section, str(name))
    return (inner.__doc__ or "").split("\n")[0] if inner is not None else "see `ringc schema`"


def dotted(path: KeyPath) -> str:
    """`linear.decay.slopes[3]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _owner(path: KeyPath) -> str:
    return f"'{dotted(path[:-1])}'" if len(path) > 1 else "the spec"


def show(value: Any) -> str:
    """A value as YAML would write it, cut to a readable length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = f"'{value}'" if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _choose(given: str, choices: list[str]) -> str:
    near = did_you_mean(given, choices)
    return f"{near + ' ' if near else ''}choose from: {', '.join(choices)}"
