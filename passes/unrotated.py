"""Unrotated: layers of one row take the residual alone, and make its norm themselves.

`ringc.passes.outline` gives a layer the next one's first norm, so that it can stand in one kernel with what makes the residual. For one row
it is cheaper in the kernels that read it, each of which makes it again (`ringc.passes.prologues`): that saves a launch for each layer, on
the path that a step's time is made of. So in the version of one row each norm goes back to the layer that reads it.

```
%h1, %n1 = call([%h0, %n0, ...])        %h1 = call([%h0, %w0, ...])
%h2, %n2 = call([%h1, %n1, ...])   =>   %h2 = call([%h1, %w1, ...])
```
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Module, Value
from ringc.ir.ops.call import Call
from ringc.ir.ops.rows import RmsNorm
from ringc.passes.framework import Pass
from ringc.passes.rewrite import drop_unused
from ringc.passes.target import Target
from ringc.passes.versions import is_one_row


@dataclass(frozen=True)
class Unrotated(Pass):
    """Move norms of whole rows from where they are made to the layers that read them, in the versions of one row on a GPU."""

    name = "unrotated"

    def apply(self, module: Module, target: Target) -> None:
        # A CPU's kernel makes row work in front once, in memory: there is no launch to save.
        for entry in [f for f in module.functions.values() if "entry" in f.notes and is_one_row(f, target)]:
            callees = dict.fromkeys(op.callee for op in entry.body.ops if isinstance(op, Call))
            others = [f for f in module.functions.values() if f is not entry]
            assert not any(isinstance(op, Call) and op.callee in callees for f in others for op in f.body.ops), (
                "not copies"
            )
            for name in callees:
                _hoist(entry.body, module.functions[name])
            for name in callees:
                _sink(entry.body, module.functions[name])
            drop_unused(entry.body, [op for op in entry.body.ops if isinstance(op, RmsNorm)])


def _calls(body: Block, callee: Function) -> list[Call]:
    return [op for op in body.ops if isinstance(op, Call) and op.callee == callee.name]


def _hoist(entry: Block, callee: Function) -> None:
    """Make the norms of a function's results behind its calls."""
    body = callee.body
    for i, value in reversed(list(enumerate(body.outputs))):
        norm = value.op
        if not isinstance(norm, RmsNorm) or norm.x not in body.outputs or norm.weight not in body.args:
            continue
        assert norm.weight is not None
        made, weight = body.outputs.index(norm.x), body.args.index(norm.weight)
        for call in _calls(entry, callee):
            behind = entry.ops[entry.ops.index(call) + 1 :]
            build = Builder(entry, before=behind[0] if behind else None, scope=call.scope)
            again = build(RmsNorm(call.results[made], call.arguments[weight], norm.eps), call.results[i].name)
            entry.replace_uses(call.results[i], again)
        body.set_outputs(v for j, v in enumerate(body.outputs) if j != i)
        drop_unused(body, [norm])
        _call_again(entry, callee, left_out={i})


def _sink(entry: Block, callee: Function) -> None:
    """Make arguments that are norms, and nothing else's, in a function."""
    body = callee.body
    for i, argument in list(enumerate(body.args)):
        calls = _calls(entry, callee)
        norms = [v.op for call in calls for v in [call.arguments[i]] if v.uses == [call]]
        rows = [n for n in norms if isinstance(n, RmsNorm) and n.weight is not None and n.x.tensor.rank == 2]
        if len(rows) < len(calls) or len({n.eps for n in rows}) > 1:
            continue
        weights = [n.weight for n in rows if n.weight is not None]
        x = _argument(body, calls, [n.x for n in rows], argument.name)
        weight = _argument(body, calls, weights, "input_layernorm.weight")
        build = Builder(body, before=body.ops[0])
        body.replace_uses(argument, build(RmsNorm(x, weight, rows[0].eps)))
    _call_again(entry, callee)


def _argument(body: Block, calls: Sequence[Call], values: Sequence[Value], name: str) -> Value:
    """The argument that is given these values by the calls: one that is there, or a new one."""
    for i, argument in enumerate(body.args):
        if all(call.arguments[i] is value for call, value in zip(calls, values, strict=True)):
            return argument
    for call, value in zip(calls, values, strict=True):
        call.arguments = (*call.arguments, value)
        value.uses.append(call)
    return body.add_arg(values[0].type, name)


def _call_again(entry: Block, callee: Function, left_out: Collection[int] = ()) -> None:
    """Call a function with the arguments that it still uses, for the results that it still has: those of old without `left_out`."""
    body = callee.body
    used = [i for i, argument in enumerate(body.args) if argument.uses]
    for call in _calls(entry, callee):
        old = [r for i, r in enumerate(call.results) if i not in left_out]
        taken = tuple(call.arguments[i] for i in used)
        new = replace(call, arguments=taken, out=tuple(r.type for r in old))
        Builder(entry, before=call, scope=call.scope).insert(new)
        for before, after in zip(old, new.results, strict=True):
            after.name = before.name
            entry.replace_uses(before, after)
        entry.erase(call)
    body.args = [body.args[i] for i in used]
    for place, argument in enumerate(body.args):
        argument.index = place
