"""What may stand in a graph at each level, and the verifier that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ringc.errors import IRError
from ringc.ir.core import OPS, Block, Effect, Function, Level, Module, Op, Value
from ringc.ir.ops.call import Call, Launch, RegionOp
from ringc.ir.symbols import symbols_of
from ringc.ir.types import StateType, with_sizes

NAME = re.compile(r"[A-Za-z_][\w.\-]*")
"""What a function, a note, a scope may be called, so that text can be read back."""


def legal(level: Level) -> frozenset[str]:
    """Names of the operations that may stand directly in a function at a level. In a fused region everything below `kernel` may."""
    return frozenset(name for name, cls in OPS.items() if level in cls.levels)


def verify(module: Module) -> None:
    """Check a module: operations legal at its level, values defined before use, types as the operations say, calls that fit.

    Raises:
        IRError: the first rule that is broken, with the function and the operation.
    """
    allowed, fused = legal(module.level), legal(Level.FUSED)
    for function in module.functions.values():
        # A kernel's function says what the kernel means, and `prepare` runs once, from the reference: neither is lowered further.
        meant = "family" in function.notes or function.notes.get("entry") == "prepare"
        try:
            _verify_names(function)
            _verify_block(function.body, fused if meant else allowed, fused, module)
        except IRError as error:
            raise IRError(f"in @{function.name}: {error.message}", help=error.help) from error


def _verify_names(function: Function) -> None:
    for name in (function.name, *function.notes):
        if not NAME.fullmatch(name):
            raise IRError(
                f"'{name}' is no name that can be written and read back", help="use letters, digits, . - and _"
            )


def _verify_block(block: Block, allowed: frozenset[str], fused: frozenset[str], module: Module) -> None:
    block.verify_uses()
    _verify_known(block.args, "the block takes", module)
    for op in block.ops:
        if op.name not in allowed:
            raise IRError(f"{op} may not stand at this level", help=f"allowed are {', '.join(sorted(allowed))}")
        types = list(op.infer())
        if types != [r.type for r in op.results]:
            raise IRError(
                f"{op} says its results are {[str(r.type) for r in op.results]}, but makes {[str(t) for t in types]}"
            )
        _verify_known(op.results, f"{op} makes", module)
        if op.scope and not NAME.fullmatch(op.scope):
            raise IRError(f"{op} has the scope '{op.scope}', which can't be written and read back")
        if isinstance(op, Call | Launch):
            _verify_call(op, module)
        for body in op.regions():
            _verify_block(body, fused if isinstance(op, RegionOp) else allowed, fused, module)
    _verify_states(block, module)


def _verify_known(values: Sequence[Value], who: str, module: Module) -> None:
    """Every symbol of a shape has a bound, in modules that state bounds."""
    for value in values if module.bounds else ():
        shape = value.type.shape if not isinstance(value.type, StateType) else (value.type.slots, *value.type.shape)
        unknown = symbols_of(shape) - set(module.bounds)
        if unknown:
            raise IRError(
                f"{who} a {value.type}, but nothing is said of {', '.join(sorted(unknown))}",
                help="declare it at the top, as in `symbol N >= 1`",
            )


def _callee(op: Call | Launch) -> str:
    return op.callee if isinstance(op, Call) else op.kernel


def _verify_call(op: Call | Launch, module: Module) -> None:
    name = _callee(op)
    if name not in module.functions:
        raise IRError(f"{op.name} of @{name}, which is not in the module")
    body = module.functions[name].body
    renamed = op.renamed if isinstance(op, Call) else {}
    taken, made = ([with_sizes(v.type, renamed) for v in values] for values in (body.args, body.outputs))
    if [v.type for v in op.arguments] != taken:
        raise IRError(f"@{name} takes {list(map(str, taken))}, but gets {[str(v.type) for v in op.arguments]}")
    if list(op.out) != made:
        raise IRError(f"@{name} gives back {list(map(str, made))}, not {list(map(str, op.out))}")


def _verify_states(block: Block, module: Module) -> None:
    """A pool is a thread: once it was written, only the new value may be used."""
    written: dict[Value, Op] = {}
    for op in block.ops:
        for value in op.inputs():
            if isinstance(value.type, StateType) and value in written:
                raise IRError(
                    f"{op} takes %{value.name}, which {written[value]} has written", help="take the new value"
                )
        written.update((v, op) for v in op.inputs() if isinstance(v.type, StateType) and _writes(op, v, module))
    for value in block.outputs:
        if value in written:
            raise IRError(
                f"%{value.name} is given back, but {written[value]} has written it", help="give back the new value"
            )


def _writes(op: Op, state: Value, module: Module) -> bool:
    """Whether an operation writes a pool that it takes; what runs other code does so when that code does."""
    if op.effect is not Effect.WRITES_STATE:
        return False
    if not isinstance(op, Call | Launch | RegionOp):
        return True
    bodies = op.regions() if isinstance(op, RegionOp) else [module.functions[_callee(op)].body]
    inner = [
        (user, arg)
        for b in bodies
        for arg, v in zip(b.args, op.inputs(), strict=True)
        if v is state
        for user in arg.users()
    ]
    return any(_writes(user, arg, module) for user, arg in inner)
