"""Arithmetic on elements at equal positions, with numpy broadcasting. Operands have one dtype; `cast` changes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ringc.ir.core import Env, Value, attr, operand, operation
from ringc.ir.elements import E, Elements, Elementwise, Read, broadcast_index
from ringc.ir.symbols import Dim, mul
from ringc.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    import torch


def broadcast_shape(op: Elementwise, types: Sequence[TensorType]) -> TensorType:
    """The shape of the result; the segments of the operand that gives the leading axis go with it."""
    rank = max(t.rank for t in types)
    shape: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = [t.shape[axis] for t in types if t.rank >= -axis]
        size = next((s for s in sizes if s != 1), 1)
        op.require(all(s in (1, size) for s in sizes), f"axis {axis} has sizes {sizes}, which don't broadcast")
        shape.append(size)
    segments = [t.segments for t in types if t.rank == rank and t.segments is not None and t.shape[0] == shape[0]]
    op.require(len(set(segments)) <= 1, f"operands are cut into different segments: {segments}")
    return TensorType(types[0].dtype, tuple(shape), segments[0] if segments else None)


class Pointwise(Elementwise):
    """Base: the same scalar function for every element."""

    pointwise = True
    function: ClassVar[str]
    """Name in `ringc.ir.elements.FUNCTIONS`."""
    cost: ClassVar[int] = 1
    """Floating-point operations an element, by the usual convention (1 for everything but compositions)."""

    def infer(self) -> Sequence[Type]:
        types = [v.tensor for v in self.inputs()]
        self.require(
            len({t.dtype for t in types}) == 1, f"operands of different types: {[str(t.dtype) for t in types]}"
        )
        return [broadcast_shape(self, types)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        inputs = [read(k, broadcast_index(at, v.shape, math)) for k, v in enumerate(self.inputs())]
        return math.apply(self.function, *inputs)

    def flops(self) -> Dim:
        return mul(self.cost, self.result.tensor.elements) if self.result.type.dtype.is_float else 0

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        special: dict[str, Any] = {
            "not": torch.logical_not, "and": torch.logical_and, "or": torch.logical_or, "floordiv": torch.floor_divide,
            "mod": torch.remainder,
        }  # fmt: skip
        function = special.get(self.function) or getattr(torch, self.function)
        made = function(*inputs)
        assert isinstance(made, torch.Tensor)
        return made


class Unary(Pointwise):
    """Function of one floating-point operand."""

    x: Value

    def infer(self) -> Sequence[Type]:
        self.require(self.x.type.dtype.is_float, "needs a floating-point operand")
        return super().infer()


@operation("neg")
class Neg(Unary):
    """-x"""

    x: Value = operand()
    function = "neg"


@operation("abs")
class Abs(Unary):
    """|x|"""

    x: Value = operand()
    function = "abs"


@operation("exp")
class Exp(Unary):
    """e^x"""

    x: Value = operand()
    function = "exp"


@operation("log")
class Log(Unary):
    """The natural logarithm."""

    x: Value = operand()
    function = "log"


@operation("sqrt")
class Sqrt(Unary):
    """The square root."""

    x: Value = operand()
    function = "sqrt"


@operation("rsqrt")
class Rsqrt(Unary):
    """1 / sqrt(x)"""

    x: Value = operand()
    function = "rsqrt"


@operation("sigmoid")
class Sigmoid(Unary):
    """1 / (1 + e^-x)"""

    x: Value = operand()
    function = "sigmoid"


@operation("cos")
class Cos(Unary):
    """cos(x), x in radians."""

    x: Value = operand()
    function = "cos"


@operation("sin")
class Sin(Unary):
    """sin(x), x in radians."""

    x: Value = operand()
    function = "sin"


class Binary(Pointwise):
    """Function of two operands."""

    a: Value
    b: Value


class Arithmetic(Binary):
    """Function of two numbers of any kind."""

    def infer(self) -> Sequence[Type]:
        self.require(all(v.type.dtype is not DType.BOOL for v in self.inputs()), "needs numbers, not bools")
        return super().infer()


class IntegerArithmetic(Binary):
    """Function of two integers."""

    def infer(self) -> Sequence[Type]:
        integers = all(v.type.dtype in (DType.I64, DType.I32, DType.I8) for v in self.inputs())
        self.require(integers, "needs integers")
        return super().infer()


@operation("add")
class Add(Arithmetic):
    """a + b"""

    a: Value = operand()
    b: Value = operand()
    function = "add"
    commutative = True


@operation("sub")
class Sub(Arithmetic):
    """a - b"""

    a: Value = operand()
    b: Value = operand()
    function = "sub"


@operation("mul")
class Mul(Arithmetic):
    """a * b"""

    a: Value = operand()
    b: Value = operand()
    function = "mul"
    commutative = True


@operation("div")
class Div(Binary):
    """a / b, of floating-point operands."""

    a: Value = operand()
    b: Value = operand()
    function = "div"

    def infer(self) -> Sequence[Type]:
        self.require(all(v.type.dtype.is_float for v in self.inputs()), "needs floating-point operands")
        return super().infer()


@operation("maximum")
class Maximum(Arithmetic):
    """The larger of a and b."""

    a: Value = operand()
    b: Value = operand()
    function = "maximum"
    commutative = True


@operation("minimum")
class Minimum(Arithmetic):
    """The smaller of a and b."""

    a: Value = operand()
    b: Value = operand()
    function = "minimum"
    commutative = True


@operation("floordiv")
class FloorDiv(IntegerArithmetic):
    """Integer division, rounded down."""

    a: Value = operand()
    b: Value = operand()
    function = "floordiv"


@operation("mod")
class Mod(IntegerArithmetic):
    """Remainder of `floordiv`."""

    a: Value = operand()
    b: Value = operand()
    function = "mod"


class Comparison(Binary):
    """Function of two operands that gives a bool."""

    def infer(self) -> Sequence[Type]:
        (compared,) = super().infer()
        assert isinstance(compared, TensorType)
        return [compared.with_dtype(DType.BOOL)]


@operation("lt")
class Lt(Comparison):
    """a < b"""

    a: Value = operand()
    b: Value = operand()
    function = "lt"


@operation("le")
class Le(Comparison):
    """a <= b"""

    a: Value = operand()
    b: Value = operand()
    function = "le"


@operation("gt")
class Gt(Comparison):
    """a > b"""

    a: Value = operand()
    b: Value = operand()
    function = "gt"


@operation("ge")
class Ge(Comparison):
    """a >= b"""

    a: Value = operand()
    b: Value = operand()
    function = "ge"


@operation("eq")
class Eq(Comparison):
    """a == b"""

    a: Value = operand()
    b: Value = operand()
    function = "eq"
    commutative = True


class Logical(Pointwise):
    """Function of bools."""

    def infer(self) -> Sequence[Type]:
        self.require(all(v.type.dtype is DType.BOOL for v in self.inputs()), "needs bool operands")
        return super().infer()


@operation("not")
class Not(Logical):
    """Whether x is false."""

    x: Value = operand()
    function = "not"


@operation("and")
class And(Logical):
    """Whether both are true."""

    a: Value = operand()
    b: Value = operand()
    function = "and"
    commutative = True


@operation("or")
class Or(Logical):
    """Whether one is true, or both."""

    a: Value = operand()
    b: Value = operand()
    function = "or"
    commutative = True


@operation("where")
class Where(Pointwise):
    """`a` where the condition holds, else `b`."""

    condition: Value = operand()
    a: Value = operand()
    b: Value = operand()
    function = "where"

    def infer(self) -> Sequence[Type]:
        condition, a, b = (v.tensor for v in self.inputs())
        self.require(condition.dtype is DType.BOOL, "the condition is no bool")
        self.require(a.dtype == b.dtype, f"branches of different types: {a.dtype} and {b.dtype}")
        return [broadcast_shape(self, [a, b, condition])]


@operation("cast")
class Cast(Elementwise):
    """Conversion to another element type: to the nearest value, ties to even; float to integer toward zero."""

    x: Value = operand()
    dtype: DType = attr()
    pointwise = True

    def infer(self) -> Sequence[Type]:
        return [self.x.tensor.with_dtype(self.dtype)]

    def element(self, at: Sequence[E], read: Read, math: Elements) -> E:
        return math.cast(read(0, at), self.dtype)

    def reference(self, env: Env, *inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0].to(env.dtype(self.result.type))
