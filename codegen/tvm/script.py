"""Pieces of TVM script: a kernel's head, and vector loops over any number of columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.function import Parameter, memory_shape, write_module, write_signature
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Op, Value
from ringc.ir.symbols import Dim, symbols_of
from ringc.ir.types import DType, TensorType

LANES = 16
"""Lanes of a vector: 16 f32 fill an AVX-512 register; narrower machines take two or four instructions."""

_DTYPES = (DType.F32, DType.F64, DType.I32, DType.I64, DType.BOOL)
"""Element types that these kernels take."""


class Script:
    """Writes one kernel file in TVM script.

    Args:
        kernel: what is written.
        names: identifier of each argument and output that the body uses.
    """

    def __init__(self, kernel: Kernel, names: Mapping[Value, str]) -> None:
        self.kernel = kernel
        self.names = names
        self.out = Writer()
        self._sizes: dict[Dim, str] = {}

    @contextmanager
    def main(self) -> Iterator[None]:
        """The function, up to its parameters' shapes; then `kernel()`."""
        out, body = self.out, self.kernel.function.body
        given = [*body.args, *(v for v in body.outputs if isinstance(v.type, TensorType))]
        types = [v.type for v in given] + list(self.kernel.workspace)
        names = [self.names[v] for v in given] + [f"workspace{i}" for i in range(len(self.kernel.workspace))]
        for type in types:
            if type.dtype not in _DTYPES:
                raise CodegenError(
                    f"@{self.kernel.name}: kernels on the CPU compute in f32, and this one takes {type.dtype}"
                )
        shapes = [[self.size(d) for d in memory_shape(t)] for t in types]
        parameters = [
            Parameter(name, f"{name}_handle", shape, type.dtype)
            for name, shape, type in zip(names, shapes, types, strict=True)
        ]
        write_signature(out, parameters, list(self._sizes.values()))
        with out.indented():
            yield
        write_module(out)

    def size(self, dim: Dim) -> str:
        """A size that is known, or a variable that TVM reads off the tensors. `B + 1` and `4*N` are variables of their own."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self._sizes:
            symbols = "_".join(sorted(symbols_of([dim])))
            name = symbols if dim.is_Symbol else f"{symbols}_size"
            taken = {*self._sizes.values(), *self.names.values()}
            while name in taken:
                name += "_"
            self._sizes[dim] = name
        return self._sizes[dim]

    def __call__(self, text: str = "") -> None:
        self.out(text)

    def block(self, head: str) -> AbstractContextManager[None]:
        """See `Writer.block`."""
        return self.out.block(head)

    def scratch(self, name: str, shape: Sequence[int], dtype: str = "float32") -> None:
        """Memory of a task. Under 1 KiB it is on the stack, or in registers where its indices are constants."""
        axes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        self.out(f'{name} = T.alloc_buffer(({axes}), "{dtype}", scope="global")')

    def vectors(self, width: int, *statements: str, unroll: bool = True) -> None:
        """Statements on each of `width` columns, `@` in their text; the lane is `l`.

        By vectors of 16, and for the rest by powers of two: no vector is cut by a condition.
        """
        whole, rest = divmod(width, LANES)
        if whole == 1:
            self._at("l", LANES, statements)
        elif whole:
            with self.block(f"for c in {'T.unroll' if unroll else 'T.serial'}({whole}):"):
                self._at(f"c * {LANES} + l", LANES, statements)
        start, lanes = whole * LANES, LANES // 2
        while rest:
            if rest >= lanes:
                self._at(f"{start} + l" if start else "l", lanes, statements)
                start, rest = start + lanes, rest - lanes
            lanes //= 2

    def _at(self, column: str, lanes: int, statements: Sequence[str]) -> None:
        self.lanes(lanes, *(s.replace("@", column) for s in statements))

    def lanes(self, count: int, *statements: str) -> None:
        """Statements on each lane `l` of a vector."""
        if count == 1:
            for statement in statements:
                self.out(re.sub(r"\bl\b", "0", statement))
            return
        with self.block(f"for l in T.vectorized({count}):"):
            for statement in statements:
                self.out(statement)

    def text(self) -> str:
        return self.out.text()


def only(kernel: Kernel, kind: type[Op]) -> Op:
    """The operation of a kind in a kernel that does little else.

    Raises:
        CodegenError: there is none, or more than one.
    """
    found = [op for op in kernel.function.body.ops if isinstance(op, kind)]
    if len(found) != 1:
        raise CodegenError(
            f"@{kernel.name}: {kernel.implementation.template} makes one {kind.name}, and this region has {len(found)}"
        )
    return found[0]


def floor_multiple(n: int, m: int) -> int:
    """The smallest multiple of m that is at least n."""
    return -(-n // m) * m
