"""The order of the passes, and pipelines as text: `raise,fuse{epilogues=false}`."""

from __future__ import annotations

import dataclasses
import re

from ringc.errors import PassError, did_you_mean
from ringc.passes.framework import Pass
from ringc.passes.record import Record
from ringc.passes.registry import pass_class


def default_pipeline(record: Record | None = None) -> list[Pass]:
    """What `ringc compile` runs, in order; with a tuning record, `select` goes by it."""
    names = [
        "canonicalize",  # one spelling for each idea, so that what follows has fewer cases
        "cse",  # the layers compute the same masks and positions: say them once
        "raise",  # find attention, linear attention, routing, rope, norms in the decomposed graph
        "dce",  # what the composite operations replaced
        "outline",  # from here on, work follows the number of different layers, not of layers
        "versions",  # fixes the form of linear attention before anything is fused around it
        "unrotated",  # one row's norms go to the layers that read them
        "unsorted",  # few rows' experts: known once versions are, and before anything is fused around the order
        "fuse",  # regions around products, attention, routing; the rest into row kernels
        "prologues",  # row work in front of few rows: in the kernel that reads it, or apart
        "library",  # a fusion that competes with a library call stands beside it: never below the library
        "select",  # among alternatives and configurations, by the tuning record, else by the cost model
        "cse",  # a row's norm that several readers left apart after all is made once
        "layout",  # what was selected decides how the weights are stored: written as the `prepare` function
        "kernels",  # equal regions become one kernel
        "beside",  # what is off the critical path: known now, as kernels have their predicted times
        "early",  # what may be read before the launch in front has ended: known when their order is
        "memory",  # liveness, one arena, states in place
    ]
    options: dict[str, dict[str, object]] = {"select": {"record": record}} if record is not None else {}
    return [pass_class(n)(**options.get(n, {})) for n in names]


_STEP = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that a text names.

    Raises:
        PassError: an unknown pass or option, or an option of the wrong type.
    """
    steps: list[Pass] = []
    at = 0
    while at < len(text.rstrip()):
        found = _STEP.match(text, at)
        if found is None:
            raise PassError(
                f"unreadable pipeline at '{text[at : at + 20]}'",
                help="write passes as in 'raise,fuse{epilogues=false}'",
            )
        steps.append(_configured(pass_class(found[1]), found[2] or ""))
        at = found.end()
    return steps


def _configured(cls: type[Pass], options: str) -> Pass:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for option in filter(None, (o.strip() for o in options.split(","))):
        name, _, text = (part.strip() for part in option.partition("="))
        if name not in fields:
            known = f"its options: {', '.join(fields)}" if fields else "it has none"
            raise PassError(f"pass {cls.name} has no option '{name}'", help=did_you_mean(name, fields) or known)
        values[name] = _value(cls, name, str(fields[name].type), text)
    return cls(**values)


def _value(cls: type[Pass], name: str, kind: str, text: str) -> object:
    try:
        match kind.split(" ", maxsplit=1)[0]:
            case "bool":
                return {"true": True, "false": False, "": True}[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(text)
            case _:
                return text
    except (KeyError, ValueError):
        raise PassError(
            f"pass {cls.name}: {name}={text} is no {kind}", help="`ringc opt --list` shows the options"
        ) from None
