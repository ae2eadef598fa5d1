"""`ringc inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ringc.runtime.artifact import Artifact

STAGES = {
    "ttir": (".ttir", "mlir"), "ttgir": (".ttgir", "mlir"), "ptx": (".ptx", "ptx"), "sass": (".sass", "text"),
    "llvm": (".ll", "llvm"), "asm": (".s", "nasm"),
}  # fmt: skip
"""Stage -> ending of its file, and the language that colours it."""


def inspect_artifact(
    artifact: Annotated[
        Path, typer.Argument(help="Folder that `ringc compile` wrote.", show_default=False, readable=False)
    ],
    kernel: Annotated[str | None, typer.Argument(help="A kernel's name, or `program`.", show_default=False)] = None,
    stage: Annotated[str, typer.Option(help="source, ir, ttir, ttgir, ptx, sass, llvm or asm.")] = "source",
    resources: Annotated[bool, typer.Option("--resources", help="Registers, spills, memory of the kernels.")] = False,
) -> None:
    """List an artifact's kernels, or show one at any stage."""
    from ringc.runtime.artifact import open_artifact

    opened = open_artifact(artifact, allow_edited=True, any_machine=True)
    if resources:
        _resources(opened, kernel)
    elif kernel is None:
        _list(opened)
    else:
        _show(opened, kernel, stage)


def _list(artifact: Artifact) -> None:
    from ringc.cli.console import out, table

    rows = [
        (
            name + (" (edited)" if artifact.is_edited(name) else ""),
            entry["implementation"],
            ", ".join(entry["inputs"]),
            ", ".join(entry["outputs"]) or "in place",
            _short(entry["flops"]),
            _short(entry["bytes"]),
        )
        for name, entry in artifact.kernels.items()
    ]
    columns = ("kernel", "implementation", "inputs", "outputs", "FLOPs", "bytes")
    table(f"kernels of {artifact.name} for {artifact.target['name']}", columns, rows, left=4)
    out(f"look at one with: ringc inspect {artifact.folder} {next(iter(artifact.kernels))}")


def _short(expression: str) -> str:
    return expression if len(expression) <= 40 else expression[:37] + "..."


def _entry(artifact: Artifact, kernel: str) -> Any:
    from ringc.errors import UsageError, did_you_mean

    if kernel not in artifact.kernels:
        near = did_you_mean(kernel, artifact.kernels)
        raise UsageError(
            f"the artifact has no kernel '{kernel}'",
            help=near or f"kernels: {', '.join(artifact.kernels)}, and program",
        )
    return artifact.kernels[kernel]


def _show(artifact: Artifact, kernel: str, stage: str) -> None:
    from ringc.errors import UsageError

    if kernel == "program":
        if stage != "source":
            raise UsageError("the program has its source alone", help="leave --stage out")
        _print(artifact.path("program.py").read_text(encoding="utf-8"), "python")
        return
    entry = _entry(artifact, kernel)
    if stage == "source":
        _print(artifact.path(entry["source"]).read_text(encoding="utf-8"), "python")
        return
    if stage == "ir":
        _print(_function_text(artifact, kernel), "mlir")
        return
    if stage not in STAGES:
        raise UsageError(f"there is no stage '{stage}'", help=f"choose from source, ir, {', '.join(STAGES)}")
    ending, language = STAGES[stage]
    kept = _kept(entry, ending)
    for part, path in kept.items():
        if len(kept) > 1:
            _print(f"// ---- {part}", language)
        _print(artifact.path(path).read_text(encoding="utf-8"), language)
    if kept:
        return
    made = _made_now(artifact, kernel, entry, ending)
    if made is None:
        there = [s for s, (e, _) in STAGES.items() if _kept(entry, e) or (s == "asm" and entry["backend"] == "tvm")]
        raise UsageError(
            f"the kernel {kernel} has no stage '{stage}'", help=f"it has {', '.join(['source', 'ir', *there])}"
        )
    _print(made, language)


def _kept(entry: Any, ending: str) -> dict[str, str]:
    """The files of a stage: one, or one for each configuration of the kernel's file, by the configuration's name."""
    return {k.removesuffix(ending).lstrip("."): path for k, path in entry["built"].items() if k.endswith(ending)}


def _made_now(artifact: Artifact, kernel: str, entry: Any, ending: str) -> str | None:
    """A stage that isn't kept in the artifact but follows from its source: the assembly of a CPU kernel."""
    if entry["backend"] != "tvm" or ending != ".s":
        return None
    from ringc.cli.console import bar

    with bar():
        from ringc.codegen.tvm.build import compile_kernel

        text = artifact.path(entry["source"]).read_text(encoding="utf-8")
        return compile_kernel(text, kernel, assembly=True).files[".s"].decode()


def _function_text(artifact: Artifact, kernel: str) -> str:
    """A kernel's function, cut out of the module's text."""
    path = artifact.path(str(artifact.manifest["module"]))
    text = path.read_text(encoding="utf-8")
    start = text.find(f"\nfunc @{kernel}(") + 1
    if not start:
        from ringc.codegen.artifact import MANIFEST
        from ringc.errors import Place
        from ringc.runtime.manifest import contradiction

        raise contradiction(f"{artifact.manifest['module']} lacks {kernel}", Place(artifact.path(MANIFEST)))
    return text[start : text.index("\n}\n", start) + 3]


def _print(text: str, language: str) -> None:
    """With colours on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from rich.syntax import Syntax

    from ringc.cli.console import console

    console().print(Syntax(text, language, theme="ansi_dark", word_wrap=True))


def _resources(artifact: Artifact, kernel: str | None) -> None:
    from ringc.cli.console import console, out, table

    names = list(artifact.kernels) if kernel is None else [kernel]
    entries = {name: _entry(artifact, name) for name in names}
    counted = {n: e["resources"] for n, e in entries.items() if e["resources"]}
    if not counted:
        what = f"the kernel {kernel} is" if kernel is not None else f"the kernels of {artifact.name} are"
        out(f"{what} Python or library calls: they have no resources to count")
        return
    if "arch" in artifact.target:
        from ringc.codegen.inspect.resources import Resources
        from ringc.codegen.inspect.tables import resource_table

        shown = counted
        if kernel is not None:  # of a list, the most demanding configuration of each kernel is enough
            shown = entries[kernel]["launch"].get("configurations", counted)
        rows = [(n, int(artifact.target["arch"]), Resources.from_dict(dict(r))) for n, r in shown.items()]
        console().print(resource_table(rows, title=f"resources of {artifact.name}"))
    else:
        keys = sorted({k for r in counted.values() for k in r})
        cells = [(n, *(str(r.get(k, "")) for k in keys)) for n, r in counted.items()]
        table(f"resources of {artifact.name}", ("kernel", *keys), cells)
    calls = [n for n in entries if n not in counted]
    if calls:
        out(f"library calls, which have no resources to count: {', '.join(calls)}")
