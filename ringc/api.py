"""Compiling from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringc.codegen.compile import Compiled, Description, Progress
    from ringc.model_defs.spec import Spec
    from ringc.passes.device import Device
    from ringc.runtime.tune import Tuned


def compile(  # noqa: A001 - as in `ringc.compile`
    spec: str | Path | Spec,
    folder: str | Path,
    *,
    target: str = "cpu",
    dump_all: bool = False,
    force: bool = False,
    use_cache: bool = True,
    record: str | Path | None = None,
    device: str | Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Compiled:
    """Compile a spec into an artifact.

    Args:
        spec: a preset's name, a YAML file, or a loaded spec.
        folder: where the artifact goes.
        target: `cpu` (TVM), `torch` (PyTorch alone), `sm_80`, `sm_90` or `sm_100`.
        dump_all: keep the module's text after each pass, in `graph/`.
        force: replace an artifact of another model.
        use_cache: take kernels from the cache and put them there.
        record: a tuning record, by which implementations are chosen; else the cost model chooses.
        device: a device description, whose numbers the cost model goes by; else by the target's constants.
        progress: told what is being done, how much of it is done, and how much there is.

    Raises:
        SpecError: the spec is wrong, or asks for what can't be compiled yet.
        RecordError: the tuning record can't be used.
        DeviceError: the device description can't be used.
        ArtifactError: the folder can't be written.
        ToolchainError: a tool of the target is missing.
    """
    from ringc.codegen.artifact import check_target
    from ringc.codegen.cache import Cache
    from ringc.codegen.compile import compile_module
    from ringc.model_defs import load_spec
    from ringc.model_defs.lower import lower
    from ringc.passes.pipeline import default_pipeline
    from ringc.passes.record import load_record
    from ringc.passes.target import target_of

    chosen = target_of(target, device)
    loaded = load_spec(spec) if isinstance(spec, str | Path) else spec
    check_target(Path(folder), loaded.name, force=force)
    tuned = load_record(record, chosen.name) if record is not None else None
    progress("lower", 0, 1)
    module = lower(loaded, chosen.storage)
    progress("lower", 1, 1)
    return compile_module(
        module,
        chosen,
        Path(folder),
        describe(loaded),
        default_pipeline(tuned),
        dump_all=dump_all,
        force=force,
        cache=Cache() if use_cache else None,
        record=tuned,
        progress=progress,
    )


def tune(
    spec: str | Path | Spec,
    record: str | Path,
    *,
    target: str = "cpu",
    entry: str | None = None,
    use_cache: bool = True,
    device: str | Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> list[Tuned]:
    """Measure what `compile` chooses among, on this machine, into a tuning record.

    Args:
        spec: a preset's name, a YAML file, or a loaded spec.
        record: the file; entries of the same regions in it are replaced, others kept.
        target: `cpu` (TVM), `sm_80`, `sm_90` or `sm_100`; it must be one that runs here.
        entry: measure what this entry point needs alone, `prefill` or `decode`.
        use_cache: take kernels from the cache and put them there.
        device: a device description: a compile with it cuts versions elsewhere, so that other sizes are to be measured.
        progress: told what is being done, how much of it is done, and how much there is.

    Raises:
        SpecError: the spec is wrong, or asks for what can't be compiled yet.
        DeviceError: the device description can't be used.
        RecordError: the file is no record, is of another target or device, or can't be written.
        ToolchainError: the target doesn't run here.
        UsageError: there is nothing to choose, or no such entry point.
    """
    from ringc.codegen.cache import Cache
    from ringc.model_defs import load_spec
    from ringc.model_defs.lower import lower
    from ringc.passes.target import target_of
    from ringc.runtime.here import check_runs_here
    from ringc.runtime.tune import tune_module

    chosen = target_of(target, device)
    check_runs_here(chosen)
    loaded = load_spec(spec) if isinstance(spec, str | Path) else spec
    progress("lower", 0, 1)
    module = lower(loaded, chosen.storage)
    progress("lower", 1, 1)
    cache = Cache() if use_cache else None
    return tune_module(module, chosen, Path(record), entry=entry, cache=cache, progress=progress)


def calibrate(
    device: str | Path,
    *,
    target: str = "cpu",
    progress: Progress = lambda _what, _done, _total: None,
) -> Device:
    """Measure what this machine reaches, into the device description that `compile` takes.

    Args:
        device: the file; a description of the same target is replaced.
        target: `cpu` (TVM), `sm_80`, `sm_90` or `sm_100`; it must be one that runs here.
        progress: told what is being done, how much of it is done, and how much there is.

    Raises:
        DeviceError: the file is something else, or can't be written.
        ToolchainError: the target doesn't run here.
        UsageError: there is nothing to measure.
    """
    from ringc.passes.device import check_output
    from ringc.passes.target import target as find_target
    from ringc.runtime.calibrate import measure_device
    from ringc.runtime.here import check_runs_here

    chosen = find_target(target)
    check_runs_here(chosen)
    check_output(Path(device), chosen.name)
    found = measure_device(chosen, progress)
    found.save(Path(device))
    return found


def describe(spec: Spec) -> Description:
    """What an artifact's manifest says of a model."""
    from ringc.codegen.compile import Description
    from ringc.model_defs.parameters import (
        IGNORED_TENSORS,
        active_parameter_count,
        kv_bytes_per_token,
        parameter_count,
        state_bytes_per_sequence,
    )

    facts = {
        "layers": spec.layers.count,
        "linear_layers": len(spec.linear_layers),
        "softmax_layers": len(spec.softmax_layers),
        "dense_layers": len(spec.dense_layers),
        "moe_layers": len(spec.moe_layers),
        "parameters": parameter_count(spec),
        "active_parameters": active_parameter_count(spec),
        "state_bytes_per_sequence": state_bytes_per_sequence(spec),
        "kv_bytes_per_token": kv_bytes_per_token(spec),
    }
    vocabulary = spec.vocabulary.model_dump(mode="json")
    return Description(spec.name, spec.model_dump(mode="json"), facts, vocabulary, spec.max_positions, IGNORED_TENSORS)
