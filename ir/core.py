"""The graph: values, operations, blocks, functions, modules.

An operation is one dataclass. Its fields say what they are (`operand()`, `operands()`, `attr()`, `region()`), and everything generic
(printing, parsing, cloning, hashing, walking) follows from the fields. A block is a straight line of operations with arguments and
outputs; regions are blocks that see only their own arguments, so that a region can be cloned, hashed and compiled by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, dataclass_transform

from ringc.errors import IRError
from ringc.ir.symbols import Bound, Dim, add, evaluate
from ringc.ir.types import TensorType, Type

if TYPE_CHECKING:
    import torch

    from ringc.ir.replay import Replay


class Level(StrEnum):
    """How far a graph is lowered. Which operations may stand at which level is `ringc.ir.levels`."""

    GRAPH = "graph"
    FUSED = "fused"
    KERNEL = "kernel"


class Effect(StrEnum):
    """What an operation does beside computing its results. Only pure operations are merged, moved or dropped."""

    PURE = "pure"
    READS_STATE = "reads state"
    WRITES_STATE = "writes state"


class Value:
    """One result of an operation, or one argument of a block.

    `uses` holds each operation (or block, for its outputs) that takes the value, once for each time it does.
    """

    __slots__ = ("index", "name", "owner", "type", "uses")

    def __init__(self, type: Type, owner: Op | Block, index: int, name: str = "") -> None:
        self.type = type
        self.owner = owner
        self.index = index
        self.name = name
        self.uses: list[Op | Block] = []

    @property
    def op(self) -> Op | None:
        """The operation that makes the value; None for an argument."""
        return self.owner if isinstance(self.owner, Op) else None

    @property
    def tensor(self) -> TensorType:
        """The type, when it is a tensor's.

        Raises:
            IRError: the value is a state.
        """
        if not isinstance(self.type, TensorType):
            raise IRError(f"%{self.name} is a {self.type}, where a tensor is needed")
        return self.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.tensor.shape

    def users(self) -> list[Op]:
        """The operations that take this value, each once, in the order in which they came to."""
        return list(dict.fromkeys(u for u in self.uses if isinstance(u, Op)))

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


def operand() -> Any:
    """Field of type Value (or `Value | None` with `optional_operand`): one input."""
    return field(metadata={"kind": "operand"})


def optional_operand(default: None = None) -> Any:
    """Field of type `Value | None`: an input that may be absent. Type checkers need the `default=None` spelled out."""
    return field(default=default, metadata={"kind": "operand", "optional": True})


def operands() -> Any:
    """Field of type `tuple[Value, ...]`: any number of inputs."""
    return field(metadata={"kind": "operands"})


def attr(default: Any = dataclasses.MISSING) -> Any:
    """Field that is known at compile time: a number, text, dtype, size, or a tuple of such."""
    return field(default=default, metadata={"kind": "attr"})


def region() -> Any:
    """Field of type Block: a body that the operation runs."""
    return field(metadata={"kind": "region"})


def regions() -> Any:
    """Field of type `tuple[Block, ...]`: any number of bodies."""
    return field(metadata={"kind": "regions"})


@dataclass(eq=False)
class Op:
    """Base of all operations. Subclasses are registered by `@operation("name")` and declare, beside their fields:

    * `infer()`: the types of the results, checking the operands on the way (`self.require`);
    * `reference(...)`: what it means, on torch tensors of any precision: the oracle of every test;
    * `flops()`, `bytes()`: its cost, as sizes;
    * `effect`, `levels` where they differ from the defaults.
    """

    name: ClassVar[str] = ""
    effect: ClassVar[Effect] = Effect.PURE
    levels: ClassVar[frozenset[Level]] = frozenset({Level.GRAPH, Level.FUSED})
    commutative: ClassVar[bool] = False
    fields_by_kind: ClassVar[dict[str, list[dataclasses.Field[Any]]]]
    takes_scaled: ClassVar[bool] = False
    """Whether operands may be scaled in blocks (`Quant`); an operation that has no rule for the scales must not drop them."""

    def __post_init__(self) -> None:
        self.block: Block | None = None
        self.scope: str = ""
        for f in attributes(type(self)):
            value = getattr(self, f.name)
            if isinstance(value, list):
                setattr(self, f.name, tuple(value))
        if not self.takes_scaled and any(isinstance(v.type, TensorType) and v.type.quant for v in self.inputs()):
            self.fail("takes scaled elements, for which it has no rule")
        self.results: tuple[Value, ...] = tuple(Value(t, self, i) for i, t in enumerate(self.infer()))

    # -- what a subclass declares

    def infer(self) -> Sequence[Type]:
        """Types of the results. Raises IRError when operands or attributes don't fit."""
        raise NotImplementedError(f"{self.name} has no type rule")

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor] | torch.Tensor:
        """The results for these inputs. `inputs` follow `self.inputs()`; `env` gives the sizes' values and the precision."""
        raise NotImplementedError(f"{self.name} has no reference")

    def flops(self) -> Dim:
        """Floating-point operations, a multiply-add counted as two."""
        return 0

    def bytes(self) -> Dim:
        """Bytes that must move when nothing is cached: each input and each result once."""
        total: Dim = 0
        for value in (*self.inputs(), *self.results):
            total = add(total, value.type.bytes)
        return total

    # -- generic

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def inputs(self) -> list[Value]:
        """All operands in field order; absent ones left out."""
        found: list[Value] = []
        for f in operand_fields(type(self)):
            value = getattr(self, f.name)
            if f.metadata["kind"] == "operands":
                found += value
            elif value is not None:
                found.append(value)
        return found

    def regions(self) -> list[Block]:
        found: list[Block] = []
        for f in region_fields(type(self)):
            if f.metadata["kind"] == "region":
                found.append(getattr(self, f.name))
            else:
                found += getattr(self, f.name)
        return found

    def attrs(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in attributes(type(self))}

    def replace_input(self, old: Value, new: Value) -> None:
        """Take `new` wherever `old` was taken."""
        for f in operand_fields(type(self)):
            value = getattr(self, f.name)
            if f.metadata["kind"] == "operands":
                setattr(self, f.name, tuple(new if v is old else v for v in value))
            elif value is old:
                setattr(self, f.name, new)
        if self.block is not None:
            new.uses += [self for u in old.uses if u is self]
            old.uses = [u for u in old.uses if u is not self]

    def clone(self, mapping: Mapping[Value, Value], **changes: Any) -> Op:
        """A copy whose operands are looked up in `mapping` (kept where they aren't in it); regions are copied."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            kind = f.metadata.get("kind")
            if kind == "operands":
                value = tuple(mapping.get(v, v) for v in value)
            elif kind == "operand" and value is not None:
                value = mapping.get(value, value)
            elif kind == "region":
                value = value.clone()
            elif kind == "regions":
                value = tuple(body.clone() for body in value)
            values[f.name] = value
        copy = type(self)(**(values | changes))
        copy.scope = self.scope
        for mine, theirs in zip(copy.results, self.results, strict=True):
            mine.name = theirs.name
        return copy

    def require(self, condition: bool, message: str) -> None:
        """Raise an IRError about this operation unless the condition holds."""
        if not condition:
            self.fail(message)

    def fail(self, message: str) -> NoReturn:
        taken = ", ".join(map(repr, self.inputs()))
        raise IRError(f"{self.name}({taken}): {message}")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join('%' + v.name for v in self.inputs())})"


OPS: dict[str, type[Op]] = {}
"""Every operation by name."""

_OpClass = TypeVar("_OpClass", bound=type[Op])


@dataclass_transform(field_specifiers=(operand, optional_operand, operands, attr, region, regions), eq_default=False)
def operation(name: str) -> Callable[[_OpClass], _OpClass]:
    """Class decorator: make the class a dataclass and register it under this name."""

    def register(cls: _OpClass) -> _OpClass:
        dataclass(eq=False, repr=False)(cls)
        cls.name = name
        cls.fields_by_kind = _by_kind(cls)
        if name in OPS:
            raise ValueError(f"two operations are called {name}")
        OPS[name] = cls
        return cls

    return register


def operand_fields(cls: type[Op]) -> list[dataclasses.Field[Any]]:
    """The fields that hold operands, in order."""
    return cls.fields_by_kind["operands"]


def region_fields(cls: type[Op]) -> list[dataclasses.Field[Any]]:
    """The fields that hold bodies, in order."""
    return cls.fields_by_kind["regions"]


def attributes(cls: type[Op]) -> list[dataclasses.Field[Any]]:
    """The fields that hold attributes, in order."""
    return cls.fields_by_kind["attrs"]


def _by_kind(cls: type[Op]) -> dict[str, list[dataclasses.Field[Any]]]:
    """Sorted once a class: operations are made, copied and walked by the ten thousand."""
    kinds = {"operands": ("operand", "operands"), "regions": ("region", "regions"), "attrs": ("attr",)}
    return {n: [f for f in dataclasses.fields(cls) if f.metadata.get("kind") in k] for n, k in kinds.items()}


@dataclass
class Env:
    """What a reference may ask while a graph runs.

    `sizes`: the values of the symbols; `precision`: the float type to compute in (None: as typed); `parameters`: the tensor of a
    published name; `functions`: what a call may call; `replay`: what routing takes in place of its own choice.
    """

    sizes: dict[str, int]
    precision: torch.dtype | None = None
    parameters: Callable[[str], torch.Tensor] | None = None
    functions: Mapping[str, Function] = field(default_factory=dict)
    replay: Replay | None = None

    def size(self, dim: Dim) -> int:
        return evaluate(dim, self.sizes)

    def shape(self, shape: Iterable[Dim]) -> tuple[int, ...]:
        return tuple(self.size(d) for d in shape)

    def dtype(self, type: Type) -> torch.dtype:
        """The torch type that stands for an IR element type here."""
        return self.precision if self.precision is not None and type.dtype.is_float else type.dtype.torch


class Block:
    """A straight line of operations with arguments and outputs."""

    def __init__(self, arg_types: Sequence[Type] = (), arg_names: Sequence[str] = ()) -> None:
        names = list(arg_names) or [""] * len(arg_types)
        self.args: list[Value] = [Value(t, self, i, n) for i, (t, n) in enumerate(zip(arg_types, names, strict=True))]
        self.ops: list[Op] = []
        self.outputs: tuple[Value, ...] = ()

    def add_arg(self, type: Type, name: str = "") -> Value:
        value = Value(type, self, len(self.args), name)
        self.args.append(value)
        return value

    def set_outputs(self, values: Iterable[Value]) -> None:
        for old in self.outputs:
            old.uses.remove(self)
        self.outputs = tuple(values)
        for value in self.outputs:
            value.uses.append(self)

    def insert(self, op: Op, before: Op | None = None) -> Op:
        """Put an operation at the end, or before another."""
        index = len(self.ops) if before is None else self.ops.index(before)
        self.ops.insert(index, op)
        op.block = self
        for value in op.inputs():
            value.uses.append(op)
        return op

    def erase(self, op: Op) -> None:
        """Take an operation out; nothing may use its results any more."""
        used = [v for v in op.results if v.uses]
        assert not used, f"{op} is still used: {used}"
        self.ops.remove(op)
        op.block = None
        for value in op.inputs():
            value.uses.remove(op)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make every user of `old` take `new`."""
        for user in old.users():
            user.replace_input(old, new)
        for block in dict.fromkeys(u for u in old.uses if isinstance(u, Block)):
            block.set_outputs([new if v is old else v for v in block.outputs])

    def walk(self) -> Iterator[Op]:
        """Every operation, those in regions included, outer before inner."""
        for op in list(self.ops):
            yield op
            for inner in op.regions():
                yield from inner.walk()

    def clone(self) -> Block:
        copy = Block([a.type for a in self.args], [a.name for a in self.args])
        copy.copy_from(self, dict(zip(self.args, copy.args, strict=True)))
        return copy

    def copy_from(self, source: Block, mapping: dict[Value, Value]) -> None:
        """Append copies of another block's operations and take over its outputs; `mapping` says what its arguments become."""
        for op in source.ops:
            copy = self.insert(op.clone(mapping))
            mapping.update(zip(op.results, copy.results, strict=True))
        self.set_outputs(mapping.get(v, v) for v in source.outputs)

    def structural_hash(self) -> str:
        """Equal for blocks that differ in names alone."""
        number: dict[Value, int] = {}
        digest = hashlib.sha256()

        def say(*what: object) -> None:
            digest.update(repr(what).encode())

        for arg in self.args:
            number[arg] = len(number)
            say("arg", str(arg.type))
        for op in self.ops:
            taken = []
            for f in operand_fields(type(op)):
                value = getattr(op, f.name)
                many = f.metadata["kind"] == "operands"
                taken.append([number[v] for v in value] if many else None if value is None else number[value])
            say(
                op.name,
                taken,
                [(k, str(v)) for k, v in op.attrs().items()],
                [r.structural_hash() for r in op.regions()],
            )
            for value in op.results:
                number[value] = len(number)
                say(str(value.type))
        say("out", [number[v] for v in self.outputs])
        return digest.hexdigest()

    def verify_uses(self) -> None:
        """Every value is defined before it is used, and the lists of uses are true.

        Raises:
            IRError: a value is used before it is made, or stands in another block.
        """
        taken: dict[Value, Counter[Op | Block]] = {a: Counter() for a in self.args}

        def take(value: Value, user: Op | Block, who: str) -> None:
            if value not in taken:
                raise IRError(f"{who} takes %{value.name}, which is not defined before it in the same block")
            taken[value][user] += 1

        for op in self.ops:
            for value in op.inputs():
                take(value, op, op.name)
            taken.update((v, Counter()) for v in op.results)
        for value in self.outputs:
            take(value, self, "the end of the block")
        for value, users in taken.items():
            assert Counter(value.uses) == users, f"the uses of {value} are not what it says"


class Function:
    """A named block. An entry point of a module, a layer's body that entry points call, or a kernel's meaning."""

    def __init__(self, name: str, body: Block, /, **notes: Any) -> None:
        self.name = name
        self.body = body
        self.notes: dict[str, Any] = notes

    def __repr__(self) -> str:
        return f"func @{self.name}"


@dataclass
class Module:
    """All functions of a program, and what is known of the symbols in their types."""

    name: str
    functions: dict[str, Function] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    level: Level = Level.GRAPH

    def add(self, function: Function) -> Function:
        if function.name in self.functions:
            raise IRError(f"the module has two functions called {function.name}")
        self.functions[function.name] = function
        return function

    def clone(self) -> Module:
        copies = {n: Function(n, f.body.clone(), **f.notes) for n, f in self.functions.items()}
        return Module(self.name, copies, dict(self.bounds), self.level)
