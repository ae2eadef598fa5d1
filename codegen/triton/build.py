"""Builds Triton kernel files ahead of time: every stage of every configuration that a file's `JOBS` name, without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringc.codegen.backend import Built, Launcher, run_source
from ringc.codegen.cache import Cache
from ringc.codegen.kernel import Source
from ringc.codegen.triton.aot import Progress, compile_many
from ringc.codegen.triton.compile_job import CompiledKernel
from ringc.codegen.triton.jit import prepare_jit
from ringc.codegen.triton.jobs import compile_jobs, read_jobs
from ringc.codegen.triton.labels import labels
from ringc.codegen.triton.toolchain import ARCHITECTURES, find_toolchain
from ringc.codegen.tvm.threads import usable_cores
from ringc.errors import CodegenError, ToolchainError
from ringc.passes.target import Target

KEPT = ("ttir", "ttgir", "ptx", "cubin", "sass")
"""Stages that an artifact holds; the LLVM IR between ttgir and ptx says nothing that those two don't."""

MOST_WORKERS = 8
"""Compiler processes, at most; each holds about 180 MiB."""


class TritonBackend:
    """See `ringc.codegen.backend.Backend`.

    Of a file, `Built.files` holds `.KERNEL.STAGE` for each configuration, `Built.resources` what the most demanding of them takes, and
    `Built.launch` the resources and the launch shape of each.
    """

    def build(
        self, sources: Sequence[Source], target: Target, cache: Cache | None, done: Callable[[str], None]
    ) -> dict[str, Built]:
        """Compile all configurations of all files; what the cache has is not compiled again.

        Raises:
            CodegenError: a file has no usable `JOBS`, or one of its kernels doesn't compile.
            ToolchainError: Triton or ptxas is missing.
        """
        if cache is None:
            with tempfile.TemporaryDirectory(prefix="ringc-build-") as folder:
                return self.build(sources, target, Cache(Path(folder)), done)
        arch = _arch(target)
        jobs = {s.name: compile_jobs(s.text, s.name, arch) for s in sources}
        reported = 0

        def report(progress: Progress) -> None:
            # Configurations get ready in any order: files are counted by the share that is done.
            nonlocal reported
            while reported < len(sources) * progress.done // progress.total:
                done(sources[reported].name)
                reported += 1

        workers = max(2, min(MOST_WORKERS, usable_cores()))
        each = [job for source in sources for job in jobs[source.name]]
        made = iter(compile_many(each, workers=workers, cache=cache, progress=report))
        return {s.name: _built(s, [next(made) for _ in jobs[s.name]]) for s in sources}

    def versions(self, target: Target) -> dict[str, str]:
        """Triton and the assembler for the target."""
        return dict(find_toolchain(_arch(target)).identity)

    def launcher(self, path: Path, name: str) -> Launcher:
        """The file's `launch`, which Triton's JIT compiles at its first call for the GPU of this machine.

        Raises:
            CodegenError: the file has no `launch`.
            ToolchainError: there is no GPU, or Triton and its assembler are known to compile wrongly for it.
        """
        prepare_jit()
        found = run_source(path).get("launch")
        if not callable(found):
            raise CodegenError(f"{path}: kernel @{name} has no function launch")
        launch: Launcher = found
        return launch


def _arch(target: Target) -> int:
    if target.arch not in ARCHITECTURES:
        raise ToolchainError(f"target {target.name} is no GPU that Triton compiles for here")
    return target.arch


def _built(source: Source, made: Sequence[CompiledKernel]) -> Built:
    names = labels(read_jobs(source.text, source.name))
    files = {f".{n}.{stage}": k.files[stage] for n, k in zip(names, made, strict=True) for stage in KEPT}
    most = max(made, key=lambda k: (k.resources.local_bytes + k.resources.stack_bytes, k.resources.registers))
    details: Mapping[str, Any] = {n: {**k.resources.to_dict(), **k.launch} for n, k in zip(names, made, strict=True)}
    return Built(files, most.resources.to_dict(), {"configurations": details}, all(k.cached for k in made))
