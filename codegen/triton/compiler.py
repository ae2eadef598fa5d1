"""Runs Triton's compiler on one job, in this process: checks it, compiles it, disassembles what comes of it.

The file's text is compiled under the name that the artifact gives it, not under a path of this machine: line numbers in
the SASS point into the artifact, and two compiles of one spec give the same bytes wherever they run.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import re
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ringc.codegen.inspect.resources import disassemble, dump_resource_usage, read_resources
from ringc.codegen.triton.compile_job import STAGES, CompiledKernel, CompileJob
from ringc.codegen.triton.toolchain import Toolchain, ptxas_variable, triton_tool
from ringc.errors import CodegenError, RingcError, ToolchainError, did_you_mean

_TYPE = re.compile(r"\*?(?:i1|[iu](?:8|16|32|64)|fp16|bf16|fp32|fp64|fp8e4nv|fp8e5|fp8e4b15)")
_STRIDE = re.compile(r"(?:^|_)strides?(?:_|$)")


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
