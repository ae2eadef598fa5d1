"""The IR is quick enough to be built, checked and printed between all passes. The times are printed (`pytest -s`)."""

from __future__ import annotations

import time

from ringc.ir.builder import Builder
from ringc.ir.core import Block, Function, Level, Module, Value
from ringc.ir.levels import verify
from ringc.ir.ops.pointwise import Add, Mul
from ringc.ir.ops.products import MatMul
from ringc.ir.ops.rows import RmsNorm, Silu
from ringc.ir.ops.shape import Reshape
from ringc.ir.ops.source import Param
from ringc.ir.symbols import Bound, symbol
from ringc.ir.text_parse import parse_module
from ringc.ir.text_print import print_module
from ringc.ir.types import DType, tensor

OPERATIONS = 2000
LIMIT = 2.0  # seconds for each step: several times what a slow machine needs, far less than a quadratic step takes


def build() -> Module:
    n = symbol("N")
    block = Block([tensor("f32", n, 64)], ["x"])
    b = Builder(block)
    x: Value = block.args[0]
    while len(block.ops) < OPERATIONS:
        with b.within(f"layers.{len(block.ops) // 100}"):
            w = b(Param(f"layers.{len(block.ops)}.weight", DType.F32, (128, 64)), "w")
            u = b(Param(f"layers.{len(block.ops)}.weight", DType.F32, (64, 128)), "w")
            h = b(MatMul(b(RmsNorm(x, None), "y"), w, transpose_b=True), "h")
            h = b(Reshape(b(Silu(b(Reshape(h, (n, 2, 64))))), (n, 128)))
            x = b(Add(x, b(MatMul(b(Mul(h, h)), u, transpose_b=True))), "x")
    block.set_outputs([x])
    module = Module("long", {}, {"N": Bound()}, Level.FUSED)
    module.add(Function("f", block))
    return module


def test_long_functions() -> None:
    took: dict[str, float] = {}

    def timed(step: str, start: float) -> None:
        took[step] = time.perf_counter() - start

    start = time.perf_counter()
    module = build()
    timed("build", start)
    start = time.perf_counter()
    verify(module)
    timed("verify", start)
    start = time.perf_counter()
    text = print_module(module)
    timed("print", start)
    start = time.perf_counter()
    again = parse_module(text)
    timed("parse", start)
    start = time.perf_counter()
    copy = module.clone()
    timed("clone", start)
    start = time.perf_counter()
    digest = module.functions["f"].body.structural_hash()
    timed("hash", start)
    start = time.perf_counter()
    flops = sum((op.flops() for op in module.functions["f"].body.ops), start=0)
    timed("flops", start)
    block = copy.functions["f"].body
    start = time.perf_counter()
    for op in list(block.ops):  # what a rewriting pass does: insert before each operation, replace it, take it out
        if isinstance(op, Mul):
            new = Builder(block, before=op)(Mul(op.b, op.a))
            block.replace_uses(op.result, new)
            block.erase(op)
    timed("rewrite", start)
    verify(copy)
    print(
        f"\n{len(module.functions['f'].body.ops)} operations:",
        ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in took.items()),
    )
    assert again.functions["f"].body.structural_hash() == digest
    assert flops
    assert max(took.values()) < LIMIT, took
