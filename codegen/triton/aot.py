"""Compile Triton kernel files ahead of time, without a GPU, with every stage and the resources kept.

A job is a kernel file's text, the types of its run-time arguments, its constants and its options. Results are cached by
their content: a warm hit imports no Triton and runs no disassembler. Compiling happens in worker processes
(`compile_many`), or in this process (`compile_source`), which must not have set TRITON_INTERPRET.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, overload

from ringc.codegen.cache import Cache
from ringc.codegen.triton.compile_job import CompiledKernel, CompileJob, Constant
from ringc.codegen.triton.compiler import build
from ringc.codegen.triton.toolchain import Toolchain, find_toolchain
from ringc.codegen.triton.worker import WorkerProcess, serve
from ringc.errors import CodegenError, Place, RingcError, ToolchainError


@dataclass(frozen=True)
class Progress:
    """One job of `compile_many` is done: `done` of `total`; `error` is None where it succeeded."""

    done: int
    total: int
    kernel: str
    cached: bool
    seconds: float
    error: RingcError | None = None


def compile_source(
    path_or_text: Path | str,
    kernel_name: str,
    signature: Mapping[str, str],
    constants: Mapping[str, Constant],
    *,
    arch: int,
    num_warps: int = 4,
    num_stages: int = 3,
    options: Mapping[str, Constant] | None = None,
    divisible: Collection[str] | None = None,
    file_name: str = "",
    cache: Cache | None = None,
) -> CompiledKernel:
    """Compile one kernel in this process, or take it from the cache.

    Not for several threads at once: Triton takes its assembler from the process's environment.

    Args:
        path_or_text: a kernel file, or its text.
        cache: where to look and to store; nothing is stored if None. The other arguments are those of `CompileJob`.

    Raises:
        CodegenError: the kernel, its signature or its options are wrong, or a compiler rejects it.
        ToolchainError: Triton or ptxas is missing or can't run.
    """
    job = CompileJob(
        source=path_or_text.read_text() if isinstance(path_or_text, Path) else path_or_text,
        kernel=kernel_name,
        signature=signature,
        constants=constants,
        arch=arch,
        num_warps=num_warps,
        num_stages=num_stages,
        options=options or {},
        divisible=divisible,
        file_name=file_name,
    )
    toolchain = find_toolchain(arch)
    return _lookup(job, toolchain, cache) or _build_and_store(job, toolchain, cache)


@overload
def compile_many(
    jobs: Sequence[CompileJob],
    *,
    workers: int = 2,
    cache: Cache | None = None,
    progress: Callable[[Progress], None] | None = None,
    errors: Literal["raise"] = "raise",
) -> list[CompiledKernel]: ...


@overload
def compile_many(
    jobs: Sequence[CompileJob],
    *,
    workers: int = 2,
    cache: Cache | None = None,
    progress: Callable[[Progress], None] | None = None,
    errors: Literal["return"],
) -> list[CompiledKernel | RingcError]: ...


def compile_many(
    jobs: Sequence[CompileJob],
    *,
    workers: int = 2,
    cache: Cache | None = None,
    progress: Callable[[Progress], None] | None = None,
    errors: Literal["raise", "return"] = "raise",
) -> list[CompiledKernel] | list[CompiledKernel | RingcError]:
    """Compile many kernels in worker processes, taking from the cache what it holds. Equal jobs are compiled once.

    Args:
        jobs: in any order; results come in the same order.
        workers: most processes at once. None is started when all jobs are cached.
        cache: the default cache if None.
        progress: called in the caller's thread after each job; cached ones come first.
        errors: "raise" raises the first job's error once the rest have been compiled and cached; "return" puts errors
            in the jobs' places.

    Raises:
        CodegenError: a kernel is wrong or a compiler rejects it.
        ToolchainError: Triton or ptxas is missing or dies, or the cache can't be written.
    """
    cache = cache or Cache()
    toolchains = {arch: find_toolchain(arch) for arch in {job.arch for job in jobs}}
    keys = [job.key(toolchains[job.arch]) for job in jobs]
    results: dict[str, CompiledKernel | RingcError] = {}
    missing: dict[str, CompileJob] = {}
    shown = {key: job.kernel for key, job in zip(keys, jobs, strict=True)}

    def report(key: str) -> None:
        if progress is not None:
            result = results[key]
            if isinstance(result, RingcError):
                progress(Progress(len(results), len(shown), shown[key], False, 0.0, result))
            else:
                progress(Progress(len(results), len(shown), shown[key], result.cached, result.seconds))

    for key, job in zip(keys, jobs, strict=True):
        if key in results or key in missing:
            continue
        found = _lookup(job, toolchains[job.arch], cache)
        if found is None:
            missing[key] = job
        else:
            results[key] = found
            report(key)
    if missing:
        cache.check_writable()
    for key, result in _compile_missing(missing, toolchains, cache, workers):
        if errors == "raise" and isinstance(result, ToolchainError):
            raise result  # of every kernel alike: a full disk
        results[key] = result
        report(key)
    ordered = [results[key] for key in keys]
    if errors == "return":
        return ordered
    for result in ordered:
        if isinstance(result, RingcError):
            raise result
    return [result for result in ordered if isinstance(result, CompiledKernel)]


def _compile_missing(
    missing: Mapping[str, CompileJob], toolchains: Mapping[int, Toolchain], cache: Cache, workers: int
) -> Iterator[tuple[str, CompiledKernel | RingcError]]:
    """Results in the order in which they get ready."""
    if not missing:
        return
    order = sorted(missing.items(), key=lambda item: -item[1].cost)
    ready: SimpleQueue[tuple[str, CompiledKernel | RingcError]] = SimpleQueue()
    own = threading.local()
    started: list[WorkerProcess] = []

    def work(key: str, job: CompileJob) -> None:
        if not hasattr(own, "worker"):
            own.worker = _compiler_process()
            started.append(own.worker)
        ready.put((key, _compile_in(own.worker, key, job, toolchains[job.arch], cache)))

    pool = ThreadPoolExecutor(max(1, min(workers, len(order))), thread_name_prefix="compile")
    try:
        futures = [pool.submit(work, key, job) for key, job in order]
        for _ in order:
            yield ready.get()
    finally:
        # Also when interrupted: what hasn't begun is dropped, what runs is ended.
        for future in futures:
            future.cancel()
        for worker in started:
            worker.close()
        pool.shutdown(wait=True)


def _compiler_process() -> WorkerProcess:
    # In interpreter mode @triton.jit makes functions that can't be compiled.
    return WorkerProcess(__name__, environment={"TRITON_INTERPRET": None}, what="the compiler process")


def _compile_in(
    worker: WorkerProcess, key: str, job: CompileJob, toolchain: Toolchain, cache: Cache
) -> CompiledKernel | RingcError:
    plain = {**asdict(job), "divisible": None if job.divisible is None else sorted(job.divisible)}
    try:
        answer = worker.request({"job": plain, "cache": str(cache.folder)}, doing=f"compiling {job.shown_name}")
    except ToolchainError as error:
        return error
    if failed := answer.get("error"):
        kind = ToolchainError if failed["kind"] == "ToolchainError" else CodegenError
        place = None if failed["place"] is None else Place(failed["place"])
        return kind(failed["message"], place=place, help=failed["help"])
    found = _lookup(job, toolchain, cache)
    if found is None:
        return ToolchainError(
            f"the kernel cache lost {job.shown_name} (entry {key[:12]}) as soon as it was stored",
            help="was it cleared meanwhile? compile again",
        )
    return replace(found, cached=False)


def _lookup(job: CompileJob, toolchain: Toolchain, cache: Cache | None) -> CompiledKernel | None:
    if cache is None:
        return None
    key = job.key(toolchain)
    members = cache.get(key)
    return None if members is None else CompiledKernel.from_files(key, members)


def _build_and_store(job: CompileJob, toolchain: Toolchain, cache: Cache | None) -> CompiledKernel:
    built = build(job, toolchain)
    if cache is not None:
        cache.put(built.key, built.to_files())
    return built


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    job = CompileJob(**request["job"])
    built = _build_and_store(job, find_toolchain(job.arch), Cache(request["cache"]))
    return {"key": built.key, "seconds": built.seconds}


if __name__ == "__main__":
    serve(_handle)
