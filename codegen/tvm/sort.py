"""Template `tvm.sort`: a stable order of rows by a small integer key, by TVM. A counting sort by one thread, fast enough for thousands."""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.script import Script, only
from ringc.errors import CodegenError
from ringc.ir.ops.index import SortByKey


def emit(kernel: Kernel) -> str:
    """The file's body.

    Raises:
        CodegenError: the region is no single `sort_by_key` all of whose results are given back.
    """
    op = only(kernel, SortByKey)
    assert isinstance(op, SortByKey)
    body = kernel.function.body
    if len(body.ops) != 1 or set(body.outputs) != set(op.results):
        raise CodegenError(f"@{kernel.name}: tvm.sort makes a sort_by_key and nothing else")
    names = dict(zip(op.results, ("order", "offsets", "places"), strict=True))
    out = Script(kernel, {op.keys: "keys", **names})
    out("import tvm")
    out("from tvm.script import tirx as T")
    out("\n")
    with out.main():
        rows = out.size(op.keys.shape[0])
        out(
            "# offsets[e + 1] counts key e, then sums make it the end of key e; taken[e] is the next free place of key e."
        )
        out.scratch("taken", (op.num_keys,), "int32")
        with out.block(f"for e in T.serial({op.num_keys + 1}):"):
            out("offsets[e] = 0")
        with out.block(f"for i in T.serial({rows}):"):
            out("offsets[keys[i] + 1] = offsets[keys[i] + 1] + 1")
        with out.block(f"for e in T.serial({op.num_keys}):"):
            out("taken[e] = offsets[e]")
            out("offsets[e + 1] = offsets[e + 1] + offsets[e]")
        with out.block(f"for i in T.serial({rows}):"):
            out("places[i] = taken[keys[i]]")
            out("taken[keys[i]] = taken[keys[i]] + 1")
            out('order[places[i]] = T.Cast("int32", i)')
    return out.text()
