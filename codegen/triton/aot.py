"""Compile Triton kernel files ahead of time, without a GPU, with every stage and the resources kept.

A job is a kernel file's text, the types of its run-time arguments, its constants and its options. Results are cached by
their content: a warm hit imports no Triton and runs no disassembler. Compiling happens in worker processes
(`compile_many`), or in this process (`compile_source`), which must not have set TRITON_INTERPRET.

The file's text is compiled under the name that the artifact gives it, not under a path of this machine: line numbers in
the SASS point into the artifact, and two compiles of one spec give the same bytes wherever they run.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import re
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, overload

from ringc.codegen.cache import Cache, cache_key
from ringc.codegen.inspect.resources import Resources, disassemble, dump_resource_usage, read_resources
from ringc.codegen.triton.toolchain import Toolchain, find_toolchain, ptxas_variable, triton_tool
from ringc.codegen.triton.worker import WorkerProcess, serve
from ringc.errors import CodegenError, Place, RingcError, ToolchainError, did_you_mean

#: Stages kept of every kernel, in the order of compilation; all but "cubin" are text.
STAGES = ("ttir", "ttgir", "llir", "ptx", "cubin", "sass")

_META = "meta.json"
_TYPE = re.compile(r"\*?(?:i1|[iu](?:8|16|32|64)|fp16|bf16|fp32|fp64|fp8e4nv|fp8e5|fp8e4b15)")
_STRIDE = re.compile(r"(?:^|_)strides?(?:_|$)")

Constant = bool | int | float | str | None


@dataclass(frozen=True)
class CompileJob:
    """One kernel to compile.

    Attributes:
        source: text of a Python file that imports only Triton and the standard library at its top.
        kernel: name of the `@triton.jit` function in it.
        signature: run-time parameter to Triton type: "*bf16", "*fp32", "i32", "fp32", ...
        constants: `tl.constexpr` parameter to value; None for a pointer that isn't passed.
        arch: 80, 90 or 100.
        num_warps, num_stages: launch shape and software-pipeline depth.
        options: further fields of Triton's CUDAOptions, such as "maxnreg". `enable_fp_fusion` is True unless given: its
            default changes between versions of Triton.
        divisible: parameters that are multiples of 16, in bytes for pointers. None stands for what the JIT would find
            at launch: all pointers, and integers named as strides; parameters that the kernel marks `do_not_specialize`
                are left out.
        file_name: what the file is called in line information and messages.
        cost: any measure of the time to compile; costly jobs start first.
    """

    source: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    arch: int
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, Constant] = field(default_factory=dict)
    divisible: Collection[str] | None = None
    file_name: str = ""
    cost: float = 0.0

    @property
    def shown_name(self) -> str:
        return self.file_name or f"kernels/{self.kernel}.py"

    @property
    def all_options(self) -> dict[str, Constant]:
        """Options as given to Triton."""
        return {"enable_fp_fusion": True, **self.options, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def key(self, toolchain: Toolchain) -> str:
        """The cache's key: everything that decides the result, and the compilers."""
        parts = {
            "kind": "triton",
            "source": self.source,
            "file_name": self.shown_name,
            "kernel": self.kernel,
            # A list of pairs: the order of arguments is part of a kernel's interface.
            "signature": list(self.signature.items()),
            "constants": dict(self.constants),
            "options": self.all_options,
            "divisible": None if self.divisible is None else sorted(self.divisible),
            "arch": self.arch,
            "toolchain": toolchain.identity,
        }
        return cache_key(parts)


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel compiled for one architecture.

    Attributes:
        name: the entry's name in the binary.
        arch: what it was compiled for.
        key: its key in the cache.
        resources: registers, spills, shared memory, tensor-core instructions.
        launch: what a launcher needs: "num_warps", "shared" and "global_scratch_size" (bytes).
        files: stage to contents, see `STAGES`.
        toolchain: versions of the compilers that made it.
        cached: whether it came from the cache.
        seconds: what compiling took when it was made.
    """

    name: str
    arch: int
    key: str
    resources: Resources
    launch: Mapping[str, int]
    files: Mapping[str, bytes]
    toolchain: Mapping[str, str]
    cached: bool
    seconds: float

    def text(self, stage: str) -> str:
        """A stage's text.

        Raises:
            CodegenError: the kernel has no such stage, or it is binary.
        """
        if stage == "cubin" or stage not in self.files:
            known = [name for name in self.files if name != "cubin"]
            raise CodegenError(f"kernel {self.name} has no text of stage {stage!r}", help=did_you_mean(stage, known))
        return self.files[stage].decode()

    def to_files(self) -> dict[str, bytes]:
        """As members of a cache entry."""
        meta = {
            "name": self.name,
            "arch": self.arch,
            "resources": self.resources.to_dict(),
            "launch": dict(self.launch),
            "toolchain": dict(self.toolchain),
            "seconds": self.seconds,
        }
        return {**self.files, _META: json.dumps(meta, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, key: str, members: Mapping[str, bytes]) -> CompiledKernel:
        """From the members of a cache entry."""
        meta = json.loads(members[_META])
        return cls(
            name=meta["name"],
            arch=meta["arch"],
            key=key,
            resources=Resources.from_dict(meta["resources"]),
            launch=meta["launch"],
            files={stage: members[stage] for stage in STAGES},
            toolchain=meta["toolchain"],
            cached=True,
            seconds=meta["seconds"],
        )


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


def build(job: CompileJob, toolchain: Toolchain) -> CompiledKernel:
    """Compile in this process, without a cache; imports Triton.

    Raises:
        CodegenError, ToolchainError: as `compile_source`.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ToolchainError(
            "Triton can't compile in a process that runs its interpreter",
            help="unset TRITON_INTERPRET, or use compile_many, which compiles in processes of its own",
        )
    started = time.perf_counter()
    _check_source(job)
    compiled = _run_triton(job, toolchain)
    stages: dict[str, bytes] = {}
    for stage in STAGES[:-1]:
        value = compiled.asm[stage]
        stages[stage] = value if isinstance(value, bytes) else str(value).encode()
    usage = dump_resource_usage(stages["cubin"], triton_tool("cuobjdump"))
    sass = disassemble(stages["cubin"], triton_tool("nvdisasm"))
    metadata = compiled.metadata
    launch = {
        "num_warps": int(metadata.num_warps),
        "shared": int(metadata.shared),
        "global_scratch_size": sum(int(getattr(metadata, f"{kind}_scratch_size", 0)) for kind in ("global", "profile")),
    }
    entry = next(row for row in usage if row.function == metadata.name)
    ptx = stages["ptx"].decode()
    return CompiledKernel(
        name=metadata.name,
        arch=job.arch,
        key=job.key(toolchain),
        resources=read_resources(entry, sass, ptx, shared_bytes=launch["shared"], num_warps=launch["num_warps"]),
        launch=launch,
        files={**stages, "sass": sass.encode()},
        toolchain=toolchain.identity,
        cached=False,
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_source(job: CompileJob) -> None:
    try:
        tree = ast.parse(job.source, job.shown_name)
    except SyntaxError as error:
        raise CodegenError(f"{job.shown_name} is no Python: {error.msg} in line {error.lineno}") from error
    allowed = sys.stdlib_module_names | {"triton", "torch"}
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        for name in names:
            # The cache's key covers this file's text only.
            if name.split(".")[0] not in allowed:
                raise CodegenError(
                    f"{job.shown_name} imports {name} at its top, line {node.lineno}",
                    help="a kernel file may import Triton, torch and the standard library there; put others inside functions",
                )


def _run_triton(job: CompileJob, toolchain: Toolchain) -> Any:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDAOptions
    from triton.compiler import ASTSource

    unknown = [name for name in job.all_options if name not in CUDAOptions.__dataclass_fields__]
    if unknown:
        near = did_you_mean(unknown[0], CUDAOptions.__dataclass_fields__)
        raise CodegenError(f"Triton {triton.__version__} has no option {unknown[0]!r} ({job.shown_name})", help=near)
    with (
        tempfile.TemporaryDirectory(prefix="ringc-triton-") as scratch,
        _environment(ptxas_variable(job.arch), str(toolchain.ptxas.path)),
        knobs.cache.scope(),
        knobs.compilation.scope(),
        # ptxas errors are printed with the whole PTX; the exception holds what matters.
        contextlib.redirect_stdout(io.StringIO()),
    ):
        # Triton's own cache would double ours and knows nothing of the file's name.
        knobs.cache.dir = scratch
        knobs.compilation.always_compile = True
        # Triton and the kernel file's own code raise anything: assertions, RuntimeErrors of a pass, errors of ptxas.
        try:
            _name_library_files()
            function = _load_kernel(job)
            source = ASTSource(
                fn=function,
                signature={name: job.signature.get(name, "constexpr") for name in function.arg_names},
                constexprs={(function.arg_names.index(name),): value for name, value in job.constants.items()},
                attrs={(index,): [["tt.divisibility", 16]] for index in _divisible(job, function)},
            )
            return triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=job.all_options)
        except RingcError:
            raise
        except Exception as error:
            text = str(error).strip() or type(error).__name__
            raise CodegenError(
                f"kernel {job.kernel} of {job.shown_name} doesn't compile for sm_{job.arch}: {text[-1500:]}"
            ) from error


def _name_library_files() -> None:
    """Debug information calls the files of Triton's own device functions `triton/language/...`, wherever Triton is installed."""
    from triton.language import random, standard

    for module in (random, standard):
        for value in vars(module).values():
            function = getattr(value, "fn", None)
            if isinstance(function, types.FunctionType):
                name = f"triton/language/{Path(function.__code__.co_filename).name}"
                function.__code__ = function.__code__.replace(co_filename=name)


def _load_kernel(job: CompileJob) -> Any:
    """The `@triton.jit` function, from a module that exists only in memory, with its arguments checked."""
    # Triton reads a kernel's text through `inspect`, which finds text that has no file in linecache.
    name = job.shown_name
    module = types.ModuleType(f"_ringc_kernel_{sha256(job.source.encode()).hexdigest()[:16]}")
    module.__file__ = name
    linecache.cache[name] = (len(job.source), None, job.source.splitlines(keepends=True), name)
    sys.modules[module.__name__] = module
    try:
        exec(compile(job.source, name, "exec"), module.__dict__)  # noqa: S102
    finally:
        del sys.modules[module.__name__]
    function = module.__dict__.get(job.kernel)
    if function is None or not hasattr(function, "arg_names"):
        jitted = [key for key, value in module.__dict__.items() if hasattr(value, "arg_names")]
        raise CodegenError(
            f"{name} has no @triton.jit function {job.kernel}", help=f"it has: {', '.join(jitted) or 'none'}"
        )
    _check_arguments(job, function)
    return function


def _check_arguments(job: CompileJob, function: Any) -> None:
    where = f"kernel {job.kernel} of {job.shown_name}"
    names = list(function.arg_names)
    for given in (*job.signature, *job.constants, *(job.divisible or ())):
        if given not in names:
            raise CodegenError(f"{where} has no parameter {given!r}", help=did_you_mean(given, names))
    for parameter in function.params:
        typed, constant = parameter.name in job.signature, parameter.name in job.constants
        if typed == constant:
            state = "both a type and a constant value" if typed else "neither a type nor a constant value"
            raise CodegenError(f"{where}: parameter {parameter.name!r} is given {state}")
        if typed and parameter.is_constexpr:
            raise CodegenError(f"{where}: parameter {parameter.name!r} is a tl.constexpr and needs a value, not a type")
        if typed and not _TYPE.fullmatch(job.signature[parameter.name]):
            raise CodegenError(
                f"{where}: parameter {parameter.name!r} has the unknown type {job.signature[parameter.name]!r}"
            )


def _divisible(job: CompileJob, function: Any) -> list[int]:
    """Indices of the parameters to be marked as multiples of 16."""
    found = []
    for index, parameter in enumerate(function.params):
        name = parameter.name
        if name not in job.signature:
            continue
        if job.divisible is not None:
            wanted = name in job.divisible
        elif parameter.do_not_specialize or getattr(parameter, "do_not_specialize_on_alignment", False):
            wanted = False
        else:
            type_ = job.signature[name]
            wanted = type_.startswith("*") or (type_ in ("i32", "i64") and _STRIDE.search(name) is not None)
        if wanted:
            found.append(index)
    return found


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    job = CompileJob(**request["job"])
    built = _build_and_store(job, find_toolchain(job.arch), Cache(request["cache"]))
    return {"key": built.key, "seconds": built.seconds}


if __name__ == "__main__":
    serve(_handle)
