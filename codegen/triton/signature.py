"""What surrounds the kernels in a Triton file: names of tensors, and sizes from their shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.triton.jobs import pointer
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Value
from ringc.ir.symbols import Dim, evaluate, symbols_of
from ringc.ir.types import StateType, TensorType

RESERVED = (
    "tl", "triton", "torch", "launch", "JOBS", "DEPTH", "pinned", "grid", "step", "tiles", "range", "float", "int", "bool", "str", "abs",
    "max", "min", "sum", "len", "pow", "round", "map", "filter", "all", "any", "id", "iter", "next", "print", "type", "set", "list",
    "tuple", "dict", "slice", "hash", "input", "vars",
)  # fmt: skip
"""Names that mean something else in a kernel file."""


@dataclass
class Tensors:
    """The tensors of a kernel under their names in its file, in the order of `launch`."""

    kernel: Kernel
    taken: tuple[str, ...] = ()
    """Names that the kernel's own variables have."""
    names: Names = field(init=False)
    arguments: list[str] = field(init=False)
    outputs: list[str] = field(init=False)
    workspaces: list[str] = field(init=False)

    def __post_init__(self) -> None:
        body = self.kernel.function.body
        self.names = Names((*RESERVED, self.kernel.name, *self.taken))
        self.arguments = argument_names(body, self.names)
        made = [v for v in body.outputs if isinstance(v.type, TensorType)]
        hints = [f"{v.name}_out" if v.name and not v.name.isdigit() else f"out{i}" for i, v in enumerate(made)]
        self.outputs = [self.names.fresh(h) for h in hints]
        self.workspaces = [self.names.fresh(f"work{i}") for i, _ in enumerate(self.kernel.workspace)]

    @property
    def all(self) -> list[str]:
        return [*self.arguments, *self.outputs, *self.workspaces]

    def types(self) -> dict[str, TensorType | StateType]:
        """Name -> type of every tensor."""
        body = self.kernel.function.body
        types = [*(a.type for a in body.args), *self.kernel.outputs, *self.kernel.workspace]
        return dict(zip(self.all, types, strict=True))

    def pointers(self, args: Sequence[Value]) -> dict[Value, str]:
        """The names of these values, which stand for the kernel's arguments."""
        return dict(zip(args, self.arguments, strict=True))

    def signature(self, tensors: Iterable[str], symbols: Iterable[str]) -> dict[str, str]:
        """Triton's types of these tensors and of the sizes."""
        types = self.types()
        return {t: pointer(types[t]) for t in tensors} | dict.fromkeys(symbols, "i32")

    def size_lines(self, symbols: Iterable[str]) -> list[str]:
        """Statements that find the sizes from the shapes of the tensors."""
        return [f"{name} = {self._size(name)}" for name in symbols]

    def _size(self, name: str) -> str:
        for tensor, type in self.types().items():
            shape = (type.slots, *type.shape) if isinstance(type, StateType) else type.shape
            for i, dim in enumerate(shape):
                line = _line(dim, name)
                if line is not None:
                    slope, offset = line
                    text = f"{tensor}.shape[{i}]"
                    text = f"({text} {'-' if offset > 0 else '+'} {abs(offset)})" if offset and slope != 1 else text
                    text += f" {'-' if offset > 0 else '+'} {abs(offset)}" if offset and slope == 1 else ""
                    return text if slope == 1 else f"{text} // {slope}"
        raise CodegenError(f"the size {name} can't be found from the tensors of @{self.kernel.name}")


def _line(dim: Dim, name: str) -> tuple[int, int] | None:
    """(slope, offset) of a size that is linear in one symbol."""
    if symbols_of([dim]) != {name}:
        return None
    offset, one, far = (evaluate(dim, {name: n}) for n in (0, 1, 1001))
    slope = one - offset
    return (slope, offset) if slope > 0 and far == offset + 1001 * slope else None


def head(w: Writer) -> None:
    """The imports of a kernel file."""
    w("import triton")
    w("import triton.language as tl")


def decorator(symbols: Sequence[str]) -> str:
    """The decorator of a kernel whose sizes are known at launch: none of their values makes another binary."""
    if not symbols:
        return "@triton.jit"
    return f"@triton.jit(do_not_specialize=[{', '.join(repr(s) for s in symbols)}])".replace("'", '"')
