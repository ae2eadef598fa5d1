"""Template `torch.eager`: any region as straight-line torch code, one statement for each operation.

It is the back end of target `torch`, which needs nothing but PyTorch, and the plainest reading of a kernel. What mixes the tokens of a
sequence is a loop over the segments; everything else is one expression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sympy

from ringc.codegen.kernel import Kernel
from ringc.codegen.names import Names, argument_names
from ringc.codegen.torch.expressions import EXPRESSIONS, dtype_text, literal_text
from ringc.codegen.writer import Writer
from ringc.errors import CodegenError
from ringc.ir.core import Block, Op, Value
from ringc.ir.ops.composite import meaning_of
from ringc.ir.ops.index import SortByKey, TopK
from ringc.ir.ops.mixers import Attention, LinearAttention
from ringc.ir.ops.pointwise import Pointwise
from ringc.ir.ops.products import SegmentMatMul
from ringc.ir.ops.scan import Scan
from ringc.ir.ops.source import Constant, SegmentIds
from ringc.ir.ops.state import StateAppend, StateRead, StateWrite
from ringc.ir.symbols import Dim, dim_text, symbols_of
from ringc.ir.types import Layout, StateType, TensorType

CHUNK = 64
"""Tokens in a block of the chunked form of linear attention."""

_LOCALS = frozenset({
    "torch", "F", "launch", "N", "B", "P", "S", "R", "segment", "start", "stop", "t", "slot", "at", "last", "seen", "mixed", "kh", "vh",
    "held", "decay", "slope", "first", "end", "qc", "kc", "vc", "j", "within", "inside", "before", "to_end",
})  # fmt: skip
"""Names that the statements below use for themselves."""


def emit(kernel: Kernel) -> str:
    """The file's body: `launch(*inputs, *outputs, *workspaces)`.

    Raises:
        CodegenError: an argument is packed, or an operation has no torch form.
    """
    return EagerWriter(kernel).text()


class EagerWriter:
    """Writes one kernel. Each `_<operation>` method writes an operation that takes more than one statement."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.block = kernel.function.body
        self.names = Names(_LOCALS)
        self.out = Writer()
        self.symbols: set[str] = set()
        for arg in self.block.args:
            if isinstance(arg.type, TensorType) and arg.type.layout != Layout():
                raise CodegenError(f"@{kernel.name}: torch.eager reads plain tensors, and %{arg.name} is a {arg.type}")

    def text(self) -> str:
        inputs = argument_names(self.block, self.names)
        self.outputs: dict[int, str] = {}
        outputs = self.outputs
        for i, value in enumerate(self.block.outputs):
            if not isinstance(value.type, StateType):
                name = value.name
                outputs[i] = self.names.fresh(f"{name}_out" if name and not name.isdigit() else "out")
        scratch = [self.names.fresh("scratch") for _ in self.kernel.workspace]
        self.statements(self.block)
        for i, name in outputs.items():
            self.out(f"{name}.copy_({self.read(self.block.outputs[i])})")
        head = Writer()
        body = self.out.text()
        head("import torch")
        if "F." in body:
            head("import torch.nn.functional as F")
        head()
        head()
        with head.block(f"def launch({', '.join([*inputs, *outputs.values(), *scratch])}):"):
            for name in sorted(self.symbols):
                head(f"{name} = {self.size_of(name)}")
            head(body)
        return head.text()

    def statements(self, block: Block) -> None:
        for op in block.ops:
            self.operation(op)

    def operation(self, op: Op) -> None:
        if isinstance(op, Constant) and not op.shape:
            return  # scalars are written where they are used
        special = _STATEMENTS.get(type(op))
        if special is not None:
            special(self, op)
        elif op.name in EXPRESSIONS:
            taken = [self.operand(op, v) for v in op.inputs()]
            self.assign(op.results[0], EXPRESSIONS[op.name](self, op, taken))
        elif hasattr(op, "decompose"):
            self.inline(meaning_of(op), op.inputs(), op.results)
        else:
            raise CodegenError(f"@{self.kernel.name}: torch.eager has no form for {op.name}")

    def inline(self, block: Block, inputs: Sequence[Value], results: Sequence[Value]) -> None:
        """Write another block's operations here, on these inputs."""
        for arg, value in zip(block.args, inputs, strict=True):
            self.names[arg] = self.read(value)
        self.statements(block)
        for result, value in zip(results, block.outputs, strict=True):
            self.names[result] = self.read(value)

    # -- pieces of text

    def assign(self, value: Value, expression: str) -> None:
        self.out(f"{self.names[value]} = {expression}")

    def operand(self, op: Op, value: Value) -> str:
        """A value as pointwise work reads it: a scalar constant as a Python number, if another operand is a tensor."""
        if isinstance(op, Pointwise) and _is_scalar(value) and not all(map(_is_scalar, op.inputs())):
            assert isinstance(value.op, Constant)
            return literal_text(value.op.value[0])
        return self.read(value)

    def read(self, value: Value) -> str:
        """A value as a tensor."""
        maker = value.op
        if isinstance(maker, Constant) and not maker.shape:
            return f"torch.tensor({literal_text(maker.value[0])}, dtype={dtype_text(maker.dtype)})"
        return self.names[value]

    def size(self, dim: Dim) -> str:
        self.symbols |= symbols_of([dim])
        return dim_text(dim)

    def sizes(self, shape: Sequence[Dim]) -> str:
        return ", ".join(map(self.size, shape))

    def size_of(self, symbol: str) -> str:
        """A symbol's value, read off the shape of an argument."""
        found: list[tuple[int, str]] = []
        known = {self.names[arg]: arg.type for arg in self.block.args}
        known |= {name: self.block.outputs[i].type for i, name in self.outputs.items()}
        for name, type in known.items():
            shape = (type.slots, *type.shape) if isinstance(type, StateType) else type.shape
            for axis, dim in enumerate(shape):
                if symbols_of([dim]) == {symbol}:
                    text = _solved(dim, f"{name}.shape[{axis}]")
                    if text is not None:
                        found.append((len(text), text))
        if not found:
            raise CodegenError(f"@{self.kernel.name}: no argument says how large {symbol} is")
        return min(found)[1]

    # -- operations of several statements

    def sort_by_key(self, op: SortByKey) -> None:
        keys = self.read(op.keys)
        order, offsets, places = (self.names[r] for r in op.results)
        self.out(f"{order} = {keys}.argsort(stable=True)")
        counts = self.names.fresh("counts")
        self.out(f"{counts} = torch.bincount({keys}, minlength={op.num_keys})")
        self.out(f"{offsets} = F.pad({counts}.cumsum(0), (1, 0))")
        self.out(f"{places} = {order}.argsort()")

    def topk(self, op: TopK) -> None:
        values, ids = (self.names[r] for r in op.results)
        self.out(f"{values}, {ids} = torch.sort({self.read(op.x)}, dim=-1, descending=True, stable=True)")
        self.out(f"{values}, {ids} = {values}[..., :{op.k}], {ids}[..., :{op.k}]")

    def segment_matmul(self, op: SegmentMatMul) -> None:
        x, w, offsets, made = self.read(op.x), self.read(op.w), self.read(op.offsets), self.names[op.result]
        narrow = op.x.tensor.dtype.bytes < 4
        self.out(f"{made} = {x}.new_empty(({x}.shape[0], {op.w.shape[1]}), dtype={dtype_text(op.result.tensor.dtype)})")
        with self.segments(offsets):
            product = (
                f"{x}[start:stop].float() @ {w}[segment].float().T" if narrow else f"{x}[start:stop] @ {w}[segment].T"
            )
            with self.out.block("if stop > start:"):
                self.out(f"{made}[start:stop] = {product}")

    def segment_ids(self, op: SegmentIds) -> None:
        offsets = self.read(op.offsets)
        rows = self.names.fresh("row")
        self.out(f"{rows} = torch.arange({self.size(op.length)}, dtype={offsets}.dtype, device={offsets}.device)")
        self.assign(op.result, f"torch.searchsorted({offsets}[1:].contiguous(), {rows}, right=True)")

    def state_read(self, op: StateRead) -> None:
        state, slots = self.read(op.state), self.read(op.slots)
        ones = ", ".join(["-1", *["1"] * len(op.pool().shape)])
        self.assign(op.result, f"{state}[{slots}.clamp(min=0)].masked_fill(({slots} < 0).reshape({ones}), 0)")

    def state_write(self, op: StateWrite) -> None:
        state, slots, content = self.read(op.state), self.read(op.slots), self.read(op.content)
        used = self.names.fresh("used")
        self.out(f"{used} = {slots} >= 0")
        self.out(f"{state}[{slots}[{used}]] = {content}[{used}]")
        self.names[op.result] = state

    def state_append(self, op: StateAppend) -> None:
        state, slots, positions, rows = (self.read(v) for v in op.inputs())
        used = self.names.fresh("used")
        self.out(f"{used} = {slots} >= 0")
        self.out(f"{state}[{slots}[{used}], {positions}[{used}]] = {rows}[{used}]")
        self.names[op.result] = state

    def scan(self, op: Scan) -> None:
        offsets, initial = self.read(op.offsets), self.read(op.initial)
        final, *columns = (self.names[r] for r in op.results)
        self.out(f"{final} = {initial}.clone()")
        for name, result in zip(columns, op.results[1:], strict=True):
            self.out(
                f"{name} = {initial}.new_empty(({self.sizes(result.shape)},), dtype={dtype_text(result.tensor.dtype)})"
            )
        with self.segments(offsets), self.out.block("for t in range(start, stop):"):
            state, *rest = op.body.args
            self.names[state] = f"{final}[segment]"
            for arg, x in zip(rest, op.xs, strict=False):
                self.names[arg] = f"{self.read(x)}[t]"
            for arg, c in zip(rest[len(op.xs) :], op.constants, strict=True):
                self.names[arg] = self.read(c)
            self.statements(op.body)
            new, *made = (self.read(v) for v in op.body.outputs)
            self.out(f"{final}[segment] = {new}")
            for column, value in zip(columns, made, strict=True):
                self.out(f"{column}[t] = {value}")

    def attention(self, op: Attention) -> None:
        q, keys, values, slots, offsets, positions = (self.read(v) for v in op.inputs())
        o = self.names[op.result]
        heads, shared = op.q.shape[1], op.cache.shape[1]
        group = int(heads) // int(shared)
        self.out(f"{o} = torch.zeros_like({q})")
        with self.segments(offsets, slots):
            with self.out.block("if slot < 0 or stop == start:"):
                self.out("continue")
            self.out(f"at = {positions}[start:stop]")
            self.out("last = int(at.max()) + 1")
            for name, pool in (("kh", keys), ("vh", values)):
                self.out(f"{name} = {pool}[slot, :last].repeat_interleave({group}, 1).transpose(0, 1)")
            self.out(f"seen = at[:, None] >= torch.arange(last, dtype=at.dtype, device={q}.device)")
            query = f"{q}[start:stop].transpose(0, 1)"
            self.out(f"mixed = F.scaled_dot_product_attention({query}, kh, vh, attn_mask=seen, scale={op.scale!r})")
            self.out(f"{o}[start:stop] = mixed.transpose(0, 1)")

    def linear_attention(self, op: LinearAttention) -> None:
        q, k, v, slopes, state, slots, offsets = (self.read(value) for value in op.inputs())
        o = self.names[op.results[0]]
        wide = "" if op.q.tensor.dtype == op.pool.dtype else f".to({dtype_text(op.pool.dtype)})"
        self.names[op.results[1]] = state
        self.out(f"{o} = torch.empty_like({v})")
        chunked = op.form == "chunked"
        self.out(f"slope = {slopes}[:, None, None]")
        if not chunked:
            self.out("decay = torch.exp(-slope)")
        with self.segments(offsets, slots):
            self.out(f"held = {state}[slot].clone() if slot >= 0 else torch.zeros_like({state}[0])")
            if chunked:
                self.chunks(q, k, v, o, wide, op.scale)
            else:
                with self.out.block("for t in range(start, stop):"):
                    # What the token sees of itself is one factor of its value, so that this product's rounding is one, too.
                    for name, x in (("qt", q), ("kt", k), ("vt", v)):
                        self.out(f"{name} = {x}[t]{wide}")
                    self.out("held = decay * held")
                    self.out("own = (qt * kt).sum(-1, keepdim=True) * vt")
                    self.out(f"{o}[t] = {op.scale!r} * (own + (qt[:, None] @ held)[:, 0])")
                    self.out("held = held + kt[:, :, None] * vt[:, None]")
            with self.out.block("if slot >= 0:"):
                self.out(f"{state}[slot] = held")

    def chunks(self, q: str, k: str, v: str, o: str, wide: str, scale: float) -> None:
        """Blocks of tokens: products within a block, the state between blocks (arXiv 2307.14995, sec. 3.3)."""
        with self.out.block(f"for first in range(start, stop, {CHUNK}):"):
            self.out(f"end = min(first + {CHUNK}, stop)")
            for name, x in (("qc", q), ("kc", k), ("vc", v)):
                self.out(f"{name} = {x}[first:end].transpose(0, 1){wide}")
            self.out(f"j = torch.arange(end - first, dtype=slope.dtype, device={q}.device)[:, None]")
            self.out("within = torch.exp(-slope * (j - j.T).clamp(min=0)).tril()")
            self.out("inside = (qc @ kc.mT * within) @ vc")
            self.out("before = torch.exp(-slope * (j + 1)) * (qc @ held)")
            self.out(f"{o}[first:end] = ({scale!r} * (inside + before)).transpose(0, 1)")
            self.out("to_end = torch.exp(-slope * (end - first - 1 - j))")
            self.out("held = torch.exp(-slope * (end - first)) * held + (kc * to_end).mT @ vc")

    def segments(self, offsets: str, slots: str | None = None) -> AbstractContextManager[None]:
        """A loop over the segments, with `start` and `stop`, and the slot of each."""
        pairs = f"enumerate(zip({offsets}[:-1].tolist(), {offsets}[1:].tolist(), strict=True))"
        if slots is None:
            return self.out.block(f"for segment, (start, stop) in {pairs}:")
        lists = ", ".join([f"{slots}.tolist()", f"{offsets}[:-1].tolist()", f"{offsets}[1:].tolist()"])
        return self.out.block(f"for slot, start, stop in zip({lists}, strict=True):")


_STATEMENTS: dict[type[Op], Callable[[EagerWriter, Any], None]] = {
    SortByKey: EagerWriter.sort_by_key,
    TopK: EagerWriter.topk,
    SegmentMatMul: EagerWriter.segment_matmul,
    SegmentIds: EagerWriter.segment_ids,
    StateRead: EagerWriter.state_read,
    StateWrite: EagerWriter.state_write,
    StateAppend: EagerWriter.state_append,
    Scan: EagerWriter.scan,
    Attention: EagerWriter.attention,
    LinearAttention: EagerWriter.linear_attention,
}


def _is_scalar(value: Value) -> bool:
    return isinstance(value.op, Constant) and not value.op.shape


def _solved(dim: Dim, size: str) -> str | None:
    """`size` solved for the only symbol of `dim`; None where that is no line."""
    assert isinstance(dim, sympy.Expr)
    (x,) = dim.free_symbols
    if not dim.is_polynomial():
        return None
    coefficients = sympy.Poly(dim, x).all_coeffs()
    if len(coefficients) != 2:
        return None
    slope, offset = int(coefficients[0]), int(coefficients[1])
    if offset:
        size = f"{size} - {offset}" if offset > 0 else f"{size} + {-offset}"
    return size if slope == 1 else f"({size}) // {slope}" if offset else f"{size} // {slope}"
