"""Operations that run other code: a call of a function, a fused region, a choice of regions, a kernel launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ringc.ir.core import Block, Effect, Env, Level, Op, Value, attr, operands, operation, region, regions
from ringc.ir.symbols import Dim, add, evaluate
from ringc.ir.types import TensorType, Type

if TYPE_CHECKING:
    import torch


@operation("call")
class Call(Op):
    """Runs a function of the module.

    `out` repeats the types of its results, in which symbols mean what they mean here; `buffers` is as in `launch`. `rows`: what the
    callee's `N` is here, where that isn't this function's own.
    """

    arguments: tuple[Value, ...] = operands()
    callee: str = attr()
    out: tuple[Type, ...] = attr()
    buffers: tuple[int, ...] = attr(default=())
    rows: Dim | None = attr(default=None)
    effect: ClassVar[Effect] = Effect.WRITES_STATE
    takes_scaled: ClassVar[bool] = True
    levels: ClassVar[frozenset[Level]] = frozenset(Level)

    def infer(self) -> Sequence[Type]:
        return self.out

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        from ringc.ir.interpret import run_block

        self.require(self.callee in env.functions, f"there is no function @{self.callee}")
        return run_block(env.functions[self.callee].body, inputs, replace(env, sizes=self.inside(env.sizes)))

    @property
    def renamed(self) -> Mapping[str, Dim]:
        """What symbols of the callee's types are here, where they aren't the same."""
        return {} if self.rows is None else {"N": self.rows}

    def inside(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The values of the callee's symbols, where this function's have these."""
        return {**sizes, **{name: evaluate(size, sizes) for name, size in self.renamed.items()}}


class RegionOp(Op):
    """Base: an operation that means what its body says. Its cost is the body's work and its own traffic."""

    arguments: tuple[Value, ...]
    levels = frozenset({Level.FUSED, Level.KERNEL})
    takes_scaled = True

    def check_body(self, body: Block) -> None:
        given, taken = [v.type for v in self.arguments], [a.type for a in body.args]
        self.require(given == taken, f"the body takes {[str(t) for t in taken]}, but gets {[str(t) for t in given]}")

    def flops_of(self, body: Block) -> Dim:
        total: Dim = 0
        for op in body.ops:
            total = add(total, op.flops())
        return total


@operation("fused")
class Fused(RegionOp):
    """A region that becomes one kernel of a family (`ringc.passes.fuse` says which regions a family takes).

    `implementation` is what `select` chose: a template and its configuration, as in `tvm.matmul{rows=8,block=32}`; `seconds` is its
    predicted time as an expression of the sizes, `workspace` the memory that its kernel wants beside the outputs. `lost` holds what was
    not chosen: implementation, predicted time, why it is illegal, if so, and the time that won (that of several kernels, where a whole way
    of `alternatives` lost). `measured` holds what a tuning record says of the chosen and the others, where it settled the choice: sizes,
    implementation or way, measured seconds, and those of what won.
    A state that the body writes is given back as a result and updated in place.
    """

    arguments: tuple[Value, ...] = operands()
    family: str = attr()
    body: Block = region()
    implementation: str = attr(default="")
    seconds: str = attr(default="")
    workspace: tuple[TensorType, ...] = attr(default=())
    lost: tuple[tuple[str, str, str, str], ...] = attr(default=())
    measured: tuple[tuple[str, str, str, str], ...] = attr(default=())

    @property
    def effect(self) -> Effect:  # type: ignore[override]
        effects = {op.effect for op in self.body.walk()}
        return next((e for e in (Effect.WRITES_STATE, Effect.READS_STATE) if e in effects), Effect.PURE)

    def infer(self) -> Sequence[Type]:
        self.check_body(self.body)
        return [v.type for v in self.body.outputs]

    def flops(self) -> Dim:
        return self.flops_of(self.body)

    def bytes(self) -> Dim:
        """Each input and output once, but of a pool or a gathered table only the rows that the body touches."""
        from ringc.ir.ops.cost import region_bytes

        return region_bytes(self.body)

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        from ringc.ir.interpret import run_block

        return run_block(self.body, inputs, env)


@operation("alternatives")
class Alternatives(RegionOp):
    """Several ways to compute the same results, of which a later pass keeps one. The first is the meaning."""

    arguments: tuple[Value, ...] = operands()
    labels: tuple[str, ...] = attr()
    ways: tuple[Block, ...] = regions()

    @property
    def effect(self) -> Effect:  # type: ignore[override]
        effects = {op.effect for op in self.ways[0].walk()}
        return next((e for e in (Effect.WRITES_STATE, Effect.READS_STATE) if e in effects), Effect.PURE)

    def infer(self) -> Sequence[Type]:
        self.require(len(self.ways) == len(self.labels) >= 1, "needs one label for each way")
        results = [v.type for v in self.ways[0].outputs]
        for way in self.ways:
            self.check_body(way)
            self.require([v.type for v in way.outputs] == results, "the ways give back different types")
        return results

    def flops(self) -> Dim:
        return self.flops_of(self.ways[0])

    def bytes(self) -> Dim:
        from ringc.ir.ops.cost import region_bytes

        return region_bytes(self.ways[0])

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        from ringc.ir.interpret import run_block

        return run_block(self.ways[0], inputs, env)


@operation("launch")
class Launch(Op):
    """Runs a kernel of the module.

    `buffers` numbers the arena's buffer that each result lives in (-1: in place, or the caller's), `scratch` those of the workspaces.
    `beside`: it may run beside the launches that follow, up to the first that reads what it made.
    """

    arguments: tuple[Value, ...] = operands()
    kernel: str = attr()
    out: tuple[Type, ...] = attr()
    buffers: tuple[int, ...] = attr(default=())
    scratch: tuple[int, ...] = attr(default=())
    beside: bool = attr(default=False)
    effect: ClassVar[Effect] = Effect.WRITES_STATE
    takes_scaled: ClassVar[bool] = True
    levels: ClassVar[frozenset[Level]] = frozenset({Level.KERNEL})

    def infer(self) -> Sequence[Type]:
        return self.out

    def reference(self, env: Env, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        from ringc.ir.interpret import run_block

        self.require(self.kernel in env.functions, f"there is no kernel @{self.kernel}")
        return run_block(env.functions[self.kernel].body, inputs, env)
