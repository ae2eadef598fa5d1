"""`ringc compile`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ringc.codegen.compile import Compiled


def compile_spec(
    spec: Annotated[
        str, typer.Argument(help="A preset's name (see `ringc presets`) or a YAML file.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the artifact.", show_default=False, readable=False)
    ],
    target: Annotated[str, typer.Option(help="cpu, torch, sm_80, sm_90 or sm_100.")] = "cpu",
    dump: Annotated[
        str, typer.Option(help="all keeps the IR after every pass, last that after the last.", metavar="all|last")
    ] = "last",
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact of another model.")] = False,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Use the cache of built kernels.")] = True,
    record: Annotated[
        Path | None,
        typer.Option(help="Choose kernels by what `ringc tune` measured.", show_default=False, readable=False),
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option(help="Predict by the device that `ringc calibrate` measured.", show_default=False, readable=False),
    ] = None,
) -> None:
    """Compile a spec into an artifact.

    An artifact is a folder: kernels, a host program, a map for the weights, and what the compiler did.
    """
    from ringc import api
    from ringc.cli.console import bar
    from ringc.errors import UsageError

    if dump not in ("all", "last"):
        raise UsageError(f"there is no dump '{dump}'", help="use --dump all, or leave it out")
    began = time.perf_counter()
    with bar() as progress:
        compiled = api.compile(
            spec,
            output,
            target=target,
            dump_all=dump == "all",
            force=force,
            use_cache=cache,
            record=record,
            device=device,
            progress=progress,
        )
    _summary(compiled, time.perf_counter() - began)
    _warn(compiled.manifest["target"].get("arch"))


def _warn(arch: int | None) -> None:
    """Say that the assembler which made the kernels is known to make wrong ones; running them is refused."""
    if arch is None:
        return
    from ringc.cli.console import warn
    from ringc.codegen.triton.toolchain import find_toolchain, toolchain_problems

    for bad in toolchain_problems(find_toolchain(arch), "run"):
        if bad.severity == "error":
            warn(bad.what, bad.remedy)


def _summary(compiled: Compiled, seconds: float) -> None:
    from ringc.cli.console import count, duration, out, table
    from ringc.cli.versions import versions_table
    from ringc.units import size

    manifest = compiled.manifest
    facts, target = manifest["facts"], manifest["target"]
    kinds = [f"{facts[k + '_layers']} {k}" for k in ("linear", "softmax", "dense", "moe") if facts[k + "_layers"]]
    rows = [
        ("model", manifest["name"]),
        ("target", f"{target['name']} ({target['backend']}, {target['storage']})"),
        ("layers", f"{facts['layers']} ({', '.join(kinds)})"),
        ("parameters", f"{count(facts['parameters'])}, {count(facts['active_parameters'])} of them active for a token"),
        ("state", f"{size(facts['state_bytes_per_sequence'])} a sequence, {size(facts['kv_bytes_per_token'])} a token"),
        ("kernels", f"{len(manifest['kernels'])} ({compiled.built} built, {compiled.cached} from the cache)"),
        ("artifact", f"{compiled.folder} ({size(compiled.bytes)})"),
        ("time", f"{duration(seconds)}, {duration(compiled.passes.total)} of it in passes"),
    ]
    if "device" in manifest:
        rows.insert(-2, ("device", f"costs as calibrated on {manifest['device']['name']}"))
    if "record" in manifest:
        known = f"times of {compiled.measured} of {len(manifest['kernels'])} kernels"
        rows.insert(-2, ("record", f"{known}, measured on {manifest['record']['device']}"))
    table(f"compiled {manifest['name']}", ("", ""), rows, left=2)
    versions_table("versions", manifest)
    out(f"run it with: ringc run {compiled.folder} --weights random:0 --prompt 'Hello'")
