"""The driver: from a graph to an artifact on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ringc
from ringc.codegen import cpu
from ringc.codegen.artifact import FORMAT_VERSION, check_target, write_artifact
from ringc.codegen.backend import backend
from ringc.codegen.cache import Cache
from ringc.codegen.emit import cost_of, emit
from ringc.codegen.kernel import Kernel, Source, kernel_of
from ringc.codegen.prepare import prepare_map
from ringc.codegen.program import emit_program, entry_versions
from ringc.codegen.service import note_service
from ringc.ir.core import Module
from ringc.ir.levels import verify
from ringc.ir.symbols import dim_text
from ringc.ir.text_print import print_module
from ringc.ir.types import StateType, Type
from ringc.passes.framework import Pass, PassManager, Timing, dump_each
from ringc.passes.record import Record
from ringc.passes.schedules.candidates import service, typical_sizes
from ringc.passes.schedules.predict import predicted_seconds
from ringc.passes.target import Target

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Description:
    """What an artifact says of its model beside the program: all of it data that goes into the manifest.

    Attributes:
        name: the model's.
        spec: the spec, as plain data.
        facts: numbers for people: layers, parameters, bytes of state.
        vocabulary: `size`, `tokenizer`, `bos`, `eos`, `pad`.
        max_positions: longest sequence that the model is meant for.
        ignored_tensors: parts of names of checkpoint tensors that are no parameters.
    """

    name: str
    spec: Mapping[str, Any]
    facts: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    max_positions: int
    ignored_tensors: Sequence[str] = ()


@dataclass(frozen=True)
class Compiled:
    """What a compile made, for its summary."""

    folder: Path
    manifest: Mapping[str, Any]
    bytes: int
    passes: Timing
    built: int
    cached: int
    measured: int = 0
    """Kernels that were chosen by a tuning record."""
    seconds: Mapping[str, float] = field(default_factory=dict)


def compile_module(
    module: Module,
    target: Target,
    folder: Path,
    description: Description,
    pipeline: Sequence[Pass],
    *,
    dump_all: bool = False,
    force: bool = False,
    cache: Cache | None = None,
    record: Record | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Compiled:
    """Lower a graph, generate and build its kernels, write the artifact.

    Args:
        module: at graph level; changed in place.
        target: what to compile for.
        folder: where the artifact goes.
        description: what the manifest says of the model.
        pipeline: the passes.
        dump_all: keep the module's text after each pass.
        force: replace an artifact of another model.
        cache: of built kernels; None for none.
        record: the tuning record that the pipeline goes by, for the manifest.
        progress: told how far it is.

    Raises:
        ArtifactError: the folder can't be written.
        CodegenError: a region has no kernel, or one doesn't compile.
        ToolchainError: a tool of the target is missing.
    """
    check_target(folder, description.name, force=force)
    graph = {"00_input.ring": print_module(module)}
    timing = Timing()

    def each(step_name: str, text: str) -> None:
        graph[step_name] = text

    def report(step: Any) -> None:
        progress("passes", step.index + 1, len(pipeline))

    PassManager(pipeline, [timing, report, *([dump_each(each)] if dump_all else [])]).run(module, target)
    note_service(module)
    verify(module)
    graph[f"{len(pipeline):02d}_{pipeline[-1].name}.ring"] = print_module(module)

    kernels = [kernel_of(f) for f in module.functions.values() if "family" in f.notes]
    sources = [emit(k, target) for k in kernels]
    built, versions = _build(sources, target, cache, progress)

    files = {"program.py": emit_program(module, target.name).encode()}
    files |= {f"graph/{name}": text.encode() for name, text in graph.items()}
    entries: dict[str, Any] = {}
    for kernel, source in zip(kernels, sources, strict=True):
        made = built[source.name]
        stem = f"kernels/{source.name}"
        files[f"{stem}.py"] = source.text.encode()
        files |= {stem + ending: data for ending, data in made.files.items()}
        entries[source.name] = _kernel_entry(kernel, source, stem, made)
    files["events.jsonl"] = _events(module, timing, kernels, built)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": description.name,
        "spec": dict(description.spec),
        "facts": dict(description.facts),
        "vocabulary": dict(description.vocabulary),
        "max_positions": description.max_positions,
        "ignored_tensors": list(description.ignored_tensors),
        "target": _target_entry(target),
        "tools": {"ringc": ringc.__version__, **versions},
        "entries": _entries(module),
        "states": _states(module),
        "prepare": prepare_map(module),
        "kernels": entries,
        "input": "graph/00_input.ring",
        "module": f"graph/{len(pipeline):02d}_{pipeline[-1].name}.ring",
    }
    if target.device is not None:
        manifest["device"] = {"sha256": target.device.sha256, "name": target.device.name}
    if record is not None:
        manifest["record"] = {"sha256": record.sha256, "device": record.device}
    size = write_artifact(folder, manifest, files, force=force)
    cached = sum(b.cached for b in built.values())
    measured = sum("measured" in k.function.notes for k in kernels)
    return Compiled(folder, manifest, size, timing, len(built) - cached, cached, measured)


def _build(
    sources: Sequence[Source], target: Target, cache: Cache | None, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every kernel built by its own back end: a CPU artifact may hold kernels of TVM and library calls side by side."""
    built: dict[str, Any] = {}
    versions: dict[str, str] = {}
    finished: list[str] = []

    def done(name: str) -> None:
        finished.append(name)
        progress("kernels", len(finished), len(sources))

    for name in dict.fromkeys(s.backend for s in sources):
        builder = backend(name)
        built |= builder.build([s for s in sources if s.backend == name], target, cache, done)
        versions |= builder.versions(target)
    return built, versions


def _kernel_entry(kernel: Kernel, source: Source, stem: str, made: Any) -> dict[str, Any]:
    flops, moved = cost_of(kernel)
    body = kernel.function.body
    return {
        "family": kernel.family,
        "implementation": str(kernel.implementation),
        "backend": source.backend,
        "source": f"{stem}.py",
        "built": {ending: stem + ending for ending in made.files},
        "inputs": [str(a.type) for a in body.args],
        "outputs": [str(t) for t in kernel.outputs],
        "workspace": [str(t) for t in kernel.workspace],
        "flops": flops,
        "bytes": moved,
        "resources": dict(made.resources),
        "launch": dict(made.launch),
    }


def _target_entry(target: Target) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": target.name, "backend": target.backend, "storage": str(target.storage)}
    if target.arch is not None:
        entry["arch"] = target.arch
    elif target.backend != "torch":
        entry["cpu"] = {"architecture": cpu.architecture(), "features": list(cpu.features())}
    return entry


def _entries(module: Module) -> dict[str, Any]:
    return {
        entry: [
            {
                "name": f.name,
                "guard": f.notes.get("guard", ""),
                "rows": list(f.notes.get("rows", (1, 0))),
                "form": f.notes.get("form", ""),
                "predicted": predicted_seconds(module, f),
                "typical": typical_sizes(*service(f)),
                "inputs": [[a.name, str(a.type)] for a in f.body.args],
            }
            for f in versions
        ]
        for entry, versions in entry_versions(module).items()
    }


def _states(module: Module) -> dict[str, Any]:
    """Name -> element type and shape of one slot, in the order in which entry points take them."""
    first = next(iter(entry_versions(module).values()))[0]
    found: dict[str, Any] = {}
    for arg in first.body.args:
        type: Type = arg.type
        if isinstance(type, StateType):
            shape = [d if isinstance(d, int) else dim_text(d) for d in type.shape]
            found[arg.name] = {"dtype": str(type.dtype), "shape": shape}
    return found


def _events(module: Module, timing: Timing, kernels: Sequence[Kernel], built: Mapping[str, Any]) -> bytes:
    """What happened, one JSON object a line, without times: equal compiles give equal bytes."""
    lines: list[dict[str, Any]] = [{"event": "pass", "name": name} for name, _ in timing.seconds]
    for kernel in kernels:
        files = sorted(built[kernel.name].files)
        lines.append(
            {"event": "kernel", "name": kernel.name, "implementation": str(kernel.implementation), "files": files}
        )
    lines += [
        {"event": "version", "entry": entry, "name": f.name, "guard": f.notes.get("guard", "")}
        for entry, versions in entry_versions(module).items()
        for f in versions
    ]
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()
