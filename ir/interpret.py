"""Runs any graph from the reference semantics of its operations, in any precision: the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ringc.errors import IRError, did_you_mean
from ringc.ir.core import Block, Env, Function, Module, Value
from ringc.ir.symbols import bind, shape_text
from ringc.ir.types import StateType

if TYPE_CHECKING:
    import torch

    from ringc.ir.replay import Replay


def run(
    module: Module,
    name: str,
    inputs: Sequence[torch.Tensor],
    parameters: Callable[[str], torch.Tensor] | None = None,
    precision: torch.dtype | None = None,
    replay: Replay | None = None,
) -> list[torch.Tensor]:
    """Run a function of a module.

    Args:
        module: what the function and its callees are taken from.
        name: the function's.
        inputs: one tensor for each argument. A pool's tensor is `[slots, *shape]`.
        parameters: gives the tensor of a published name.
        precision: compute all floating-point values in this type; None: each in its own type.
        replay: experts that `route` operations take in place of their own choice.

    Raises:
        IRError: there is no such function, an input's shape doesn't fit its argument's type, or the replay doesn't fit the graph.
    """
    if name not in module.functions:
        raise IRError(f"there is no function @{name}", help=did_you_mean(name, module.functions))
    function = module.functions[name]
    sizes = bind_sizes(function.body.args, inputs)
    made = run_block(function.body, inputs, Env(sizes, precision, parameters, module.functions, replay))
    if replay is not None and len(replay.scores) != len(replay.experts):
        raise IRError(
            f"the recording has the choices of {len(replay.experts)} routings, and the graph {len(replay.scores)}"
        )
    return made


def bind_sizes(args: Sequence[Value], inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """The symbols' values that make the arguments' types fit the inputs."""
    if len(args) != len(inputs):
        raise IRError(f"{len(args)} arguments, but {len(inputs)} inputs")
    sizes: dict[str, int] = {}
    pending = list(zip(args, inputs, strict=True))
    while pending:
        # A size such as N*B is solved once one of its symbols is known from another axis: go round until nothing changes.
        known = len(sizes)
        left = [(a, x) for a, x in pending if not _bind_one(a, x, sizes)]
        if len(left) == len(pending) and len(sizes) == known:
            arg, given = left[0]
            raise IRError(
                f"%{arg.name} is a {arg.type}, but its input has the shape [{shape_text(given.shape)}] ({sizes})"
            )
        pending = left
    return sizes


def _bind_one(arg: Value, given: torch.Tensor, sizes: dict[str, int]) -> bool:
    shape = (arg.type.slots, *arg.type.shape) if isinstance(arg.type, StateType) else arg.type.shape
    if len(shape) != given.ndim:
        return False
    fits = [bind(d, n, sizes) for d, n in zip(shape, given.shape, strict=True)]  # every axis: one may help another
    return all(fits)


def run_block(block: Block, inputs: Sequence[torch.Tensor], env: Env) -> list[torch.Tensor]:
    """Run one block. Floating-point inputs are converted to the precision of `env`; a value is dropped after its last use."""
    import torch

    values: dict[Value, torch.Tensor] = {}
    for arg, given in zip(block.args, inputs, strict=True):
        values[arg] = given.to(env.dtype(arg.type))
    last = {v: op for op in block.ops for v in op.inputs()}
    kept = set(block.outputs)
    for op in block.ops:
        taken = op.inputs()
        made = op.reference(env, *(values[v] for v in taken))
        results = [made] if isinstance(made, torch.Tensor) else made
        values.update(zip(op.results, results, strict=True))
        for v in taken:
            if last[v] is op and v not in kept:
                values.pop(v, None)
    return [values[v] for v in block.outputs]


__all__ = ["Env", "Function", "bind_sizes", "run", "run_block"]
