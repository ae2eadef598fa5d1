"""What a kernel is between the passes and a back end: a function, a chosen implementation, and the file that is generated from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from ringc.errors import CodegenError
from ringc.ir.core import Function
from ringc.ir.types import StateType, TensorType

Number = int | float | str


@dataclass(frozen=True)
class Implementation:
    """A template and its configuration, as `select` writes it: `tvm.matmul_tiled{rows=4,columns=32}`."""

    template: str
    config: tuple[tuple[str, Number], ...] = ()

    @property
    def backend(self) -> str:
        return self.template.partition(".")[0]

    def __getitem__(self, key: str) -> int:
        value = dict(self.config)[key]
        assert isinstance(value, int)
        return value

    def get(self, key: str, default: Number) -> Number:
        return dict(self.config).get(key, default)

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in self.config)
        return self.template + (f"{{{inside}}}" if inside else "")


_IMPLEMENTATION = re.compile(r"([\w.]+)(?:\{(.*)\})?$")


def parse_implementation(text: str) -> Implementation:
    """The inverse of `str(implementation)`."""
    found = _IMPLEMENTATION.match(text)
    if found is None:
        raise CodegenError(f"'{text}' is no implementation", help="write one as in 'tvm.row{lanes=16}'")
    config: list[tuple[str, Number]] = []
    for item in filter(None, (found[2] or "").split(",")):
        key, _, value = item.partition("=")
        config.append((key.strip(), int(value) if re.fullmatch(r"-?\d+", value.strip()) else value.strip()))
    return Implementation(found[1], tuple(config))


@dataclass(frozen=True)
class Kernel:
    """A kernel to generate: what it means, how it is to be made, and what its file is called.

    Calling convention: inputs in the order of the function's arguments, then one output for each result that is no state, then the
    workspaces. A state result is the argument of the same place in `in_place`, updated.
    """

    function: Function
    implementation: Implementation

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def family(self) -> str:
        return str(self.function.notes["family"])

    @property
    def outputs(self) -> list[TensorType]:
        """Types of the results that the caller provides memory for."""
        return [v.type for v in self.function.body.outputs if isinstance(v.type, TensorType)]

    @property
    def in_place(self) -> dict[int, int]:
        """Result number -> argument number, for each state that the kernel writes."""
        body = self.function.body
        found: dict[int, int] = {}
        for i, value in enumerate(body.outputs):
            if isinstance(value.type, StateType):
                origin = value
                while origin.op is not None:
                    origin = next(
                        v for v in origin.op.inputs() if isinstance(v.type, StateType) and v.type == value.type
                    )
                found[i] = body.args.index(origin)
        return found

    @property
    def workspace(self) -> tuple[TensorType, ...]:
        """Memory that the kernel wants beside its outputs, uninitialised."""
        return tuple(self.function.notes.get("workspace", ()))


def kernel_of(function: Function) -> Kernel:
    """The kernel that a function of a lowered module describes.

    Raises:
        CodegenError: `select` chose nothing for it.
    """
    if "implementation" not in function.notes:
        raise CodegenError(f"no implementation is chosen for @{function.name}")
    return Kernel(function, parse_implementation(str(function.notes["implementation"])))


@dataclass(frozen=True)
class Source:
    """A generated kernel file."""

    name: str
    backend: str
    text: str
    notes: dict[str, Number] = field(default_factory=dict)


Emit = Callable[[Kernel], str]
"""Writes the body of a kernel's file: everything between the header and the main block."""

TEMPLATES = {
    "torch.eager": "ringc.codegen.torch.eager:emit",
    "torch.library": "ringc.codegen.torch.library:emit",
    "tvm.row": "ringc.codegen.tvm.row:emit",
    "tvm.matmul": "ringc.codegen.tvm.matmul:emit",
    "tvm.grouped_few": "ringc.codegen.tvm.grouped:emit_few",
    "tvm.grouped_tiled": "ringc.codegen.tvm.grouped:emit_tiled",
    "tvm.linear_recurrent": "ringc.codegen.tvm.linear_attention:emit_recurrent",
    "tvm.linear_chunked": "ringc.codegen.tvm.linear_attention:emit_chunked",
    "tvm.linear_segments": "ringc.codegen.tvm.linear_segments:emit",
    "tvm.attention": "ringc.codegen.tvm.attention:emit",
    "tvm.route": "ringc.codegen.tvm.route:emit",
    "tvm.sort": "ringc.codegen.tvm.sort:emit",
    "triton.row": "ringc.codegen.triton.row:emit",
    "triton.matmul": "ringc.codegen.triton.matmul:emit",
    "triton.gemv": "ringc.codegen.triton.gemv:emit",
    "triton.grouped": "ringc.codegen.triton.grouped:emit",
    "triton.linear_recurrent": "ringc.codegen.triton.linear_recurrent:emit",
    "triton.linear_chunked": "ringc.codegen.triton.linear_attention:emit_chunked",
    "triton.attention": "ringc.codegen.triton.attention:emit",
    "triton.route": "ringc.codegen.triton.route:emit",
    "triton.sort": "ringc.codegen.triton.sort:emit",
}
"""Template -> where the function that writes its kernels is. A new kernel is a file and a line here."""


def emitter(template: str) -> Emit:
    """The function that writes a template's kernels.

    Raises:
        CodegenError: there is no such template.
    """
    if template not in TEMPLATES:
        raise CodegenError(f"there is no kernel template '{template}'", help=f"choose from {', '.join(TEMPLATES)}")
    module, _, name = TEMPLATES[template].partition(":")
    found: Emit = getattr(import_module(module), name)
    return found
