"""The pinned configurations of a Triton kernel file: `JOBS`, which the launch and the ahead-of-time compiler both take from the file.

`JOBS` is a tuple of plain literals, one mapping for each way in which a `@triton.jit` function is launched:

    JOBS = (
        {
            "kernel": "scan",
            "signature": {"q": "*bf16", "rows": "i32"},
            "constants": {"H": 16},
            "num_warps": 4,
            "num_stages": 2,
        },
    )

It may also have "options": further fields of Triton's CUDAOptions. It is read without running the file, so that a compile without a GPU
and a warm compile import no Triton.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringc.codegen.triton.compile_job import CompileJob, Constant
from ringc.errors import CodegenError
from ringc.ir.types import DType, Type

_TYPES = {
    "f64": "fp64", "f32": "fp32", "bf16": "bf16", "f16": "fp16", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5",
    "i64": "i64", "i32": "i32", "i8": "i8", "bool": "i1",
}  # fmt: skip


PINNED = '"enable_fp_fusion": True'
"""What all launches have in common, as text in `pinned`."""


@dataclass(frozen=True)
class Job:
    """One pinned launch: run-time arguments with their Triton types, `tl.constexpr` arguments with their values, and the launch shape."""

    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    num_warps: int = 4
    num_stages: int = 2
    options: Mapping[str, Constant] = field(default_factory=dict)


def pointer(type: Type | DType) -> str:
    """Triton's type of a pointer to elements of a tensor, a pool, or of a plain element type."""
    dtype = type if isinstance(type, DType) else type.dtype
    return f"*{_TYPES[dtype.value]}"


def element(type: Type | DType) -> str:
    """An element type as an expression of `triton.language`, as in `tl.bfloat16`."""
    dtype = type if isinstance(type, DType) else type.dtype
    names = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "f8e4m3": "float8e4nv", "f8e5m2": "float8e5",
             "i64": "int64", "i32": "int32", "i8": "int8", "bool": "int1"}  # fmt: skip
    return f"tl.{names[dtype.value]}"


def jobs_text(jobs: Sequence[Job]) -> str:
    """`JOBS` as Python, and the function `pinned(job)` that launches take their constants from."""
    lines = ["JOBS = ("]
    for job in jobs:
        lines += [
            "    {",
            f'        "kernel": {_literal(job.kernel)},',
            f'        "signature": {_mapping(job.signature)},',
            f'        "constants": {_mapping(job.constants)},',
            f'        "num_warps": {job.num_warps},',
            f'        "num_stages": {job.num_stages},',
            *([f'        "options": {_mapping(job.options)},'] if job.options else []),
            "    },",
        ]
    lines += [
        ")",
        '"""Each kernel\'s configuration; compiling ahead of time reads it from here too."""',
        "",
        "",
        "def pinned(job):",
        '    """A configuration as keyword arguments of a launch."""',
        '    shape = {"num_warps": job["num_warps"], "num_stages": job["num_stages"], ' + PINNED + "}",
        '    return {**job["constants"], **shape, **job.get("options", {})}',
    ]
    return "\n".join(lines)


def _mapping(values: Mapping[str, Constant]) -> str:
    return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in values.items()) + "}"


def _literal(value: Constant) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def read_jobs(text: str, name: str) -> tuple[Mapping[str, Any], ...]:
    """The value of `JOBS` in a kernel file's text, without running it.

    Raises:
        CodegenError: the file is no Python, or defines no `JOBS` made of literals.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise CodegenError(f"kernel @{name} is no Python: {error.msg} in line {error.lineno}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "JOBS" for t in node.targets):
            try:
                found = ast.literal_eval(node.value)
            except ValueError as error:
                raise CodegenError(f"kernel @{name}: JOBS in line {node.lineno} isn't made of literals") from error
            return tuple(found)
    raise CodegenError(
        f"kernel @{name} has no JOBS",
        help="a Triton kernel file names its configurations there: ringc.codegen.triton.jobs",
    )


def compile_jobs(text: str, name: str, arch: int) -> list[CompileJob]:
    """What the ahead-of-time compiler makes of a kernel file.

    Args:
        text: of the file.
        name: of the kernel; the file is called `kernels/NAME.py` in line information.
        arch: compute capability times ten.

    Raises:
        CodegenError: the file has no usable `JOBS`.
    """
    made = []
    for job in read_jobs(text, name):
        try:
            made.append(
                CompileJob(
                    source=text,
                    kernel=job["kernel"],
                    signature=job["signature"],
                    constants=job["constants"],
                    arch=arch,
                    num_warps=job["num_warps"],
                    num_stages=job["num_stages"],
                    options=job.get("options", {}),
                    file_name=f"kernels/{name}.py",
                    cost=float(len(text)),
                )
            )
        except (KeyError, TypeError) as error:
            raise CodegenError(f"kernel @{name}: a job lacks {error}", help="see ringc.codegen.triton.jobs") from error
    return made


def padded(size: int, least: int = 16) -> int:
    """The power of two at or above a size: the width of the tile that holds it; tensor cores want 16 at least."""
    return max(least, 1 << (size - 1).bit_length())
