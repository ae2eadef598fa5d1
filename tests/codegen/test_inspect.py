"""Resources, occupancy and roofline from texts, and kernels in the interpreter's worker."""

from __future__ import annotations

import os
import signal
from io import StringIO
from pathlib import Path

import pytest

from ringc.codegen.inspect.occupancy import SM_LIMITS, occupancy
from ringc.codegen.inspect.resources import (
    Resources,
    ResourceUsage,
    count_opcodes,
    count_register_a_wgmma,
    disassemble,
    parse_resource_usage,
    read_resources,
)
from ringc.codegen.inspect.roofline import DEVICES, roofline
from ringc.codegen.triton.interpret import InterpreterWorker
from ringc.errors import ToolchainError

USAGE = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function first:
  REG:168 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function second:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

SASS = """
.text.first:
\t//## File "kernels/a.py", line 12
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR6][R4.64] ;
        /*0020*/             @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0030*/                   STL.64 [R1], R4 ;
        /*0040*/              @P1  LDL R4, [R1] ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
        /*0060*/                   HGMMA.64x128x16.F32.BF16 R24, R88, gdesc[UR8], R24 ;
        /*0070*/                   HMMA.16816.F32.BF16 R24, R4, R8, R24 ;
        /*0080*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR12], idesc[UR13], UP0 ;
        /*0090*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR6][R2.64] ;
        /*00a0*/                   RED.E.ADD.STRONG.GPU desc[UR6][R2.64], R5 ;
        /*00b0*/                   EXIT ;
.L_x_0:
"""

PTX = """
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1, %f2}, %rd1, %rd2, 1, 1, 1, 0, 0;
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16
 {%f1, %f2}, {%r1, %r2, %r3, %r4}, %rd2, 1, 1, 1, 0;
wgmma.wait_group.sync.aligned 0;
"""


def test_resource_usage_of_every_function() -> None:
    assert parse_resource_usage(USAGE) == [
        ResourceUsage("first", 168, 8, 1024, 16),
        ResourceUsage("second", 32, 0, 0, 0),
    ]
    assert parse_resource_usage("nothing") == []


def test_opcodes_are_counted_through_predicates_and_modifiers() -> None:
    ops = count_opcodes(SASS)
    assert ops.total() == 12
    assert (ops["LDG"], ops["UIADD3"], ops["HGMMA"], ops["LDL"], ops["EXIT"]) == (1, 1, 2, 1, 1)
    assert count_register_a_wgmma(PTX) == 1


def test_resources_are_put_together_and_survive_a_dict() -> None:
    found = read_resources(parse_resource_usage(USAGE)[0], SASS, PTX, shared_bytes=65536, num_warps=8)
    assert found == Resources(
        registers=168, stack_bytes=8, local_bytes=16, spill_stores=1, spill_loads=1, shared_bytes=65536, num_warps=8,
        hmma=1, hgmma=2, qgmma=0, tcgen=1, register_a_wgmma=1, async_copies=1, atomics=1, instructions=12,
    )  # fmt: skip
    assert found.spills and found.threads == 256
    assert Resources.from_dict(found.to_dict()) == found


def test_a_binary_that_is_none_is_reported() -> None:
    pytest.importorskip("triton")
    from ringc.codegen.triton.toolchain import triton_tool

    with pytest.raises(ToolchainError, match="nvdisasm"):
        disassemble(b"no ELF at all", triton_tool("nvdisasm"))
    with pytest.raises(ToolchainError, match="can't run"):
        disassemble(b"", Path("/no/such/nvdisasm"))


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks", "limiter"),
    [
        (90, 32, 0, 4, 16, "registers"),  # 65536 / (32 * 32 * 4)
        (90, 255, 0, 8, 1, "registers"),  # 255 rounds to 256 a thread
        (90, 128, 100 * 1024, 4, 2, "shared memory"),  # 228 KiB / 101 KiB
        (80, 128, 100 * 1024, 4, 1, "shared memory"),  # 164 KiB / 101 KiB
        (90, 16, 0, 1, 32, "blocks"),
        (90, 24, 0, 16, 4, "registers"),  # 24 registers * 32 round to 768: 85 warps, 5 blocks; but 64 warps hold 4
        (90, 40, 228 * 1024, 4, 0, "shared memory"),  # a block may use 227 KiB at most
        (80, 256, 0, 4, 0, "registers"),
    ],
)
def test_occupancy(arch: int, registers: int, shared: int, warps: int, blocks: int, limiter: str) -> None:
    held = occupancy(arch, registers=registers, shared_bytes=shared, num_warps=warps)
    assert held.blocks == blocks
    assert held.warps == blocks * warps and held.fraction == held.warps / 64
    if registers != 24:
        assert held.limiter == limiter
    else:
        assert held.limiter == "warps"


def test_occupancy_of_an_unknown_architecture() -> None:
    with pytest.raises(ToolchainError, match=r"sm_75(?s:.*)sm_80, sm_90, sm_100"):
        occupancy(75, registers=32, shared_bytes=0, num_warps=4)


def test_more_of_anything_never_raises_occupancy() -> None:
    for arch in SM_LIMITS:
        by_registers = [occupancy(arch, registers=r, shared_bytes=0, num_warps=4).blocks for r in range(1, 256)]
        by_shared = [occupancy(arch, registers=32, shared_bytes=s, num_warps=4).blocks for s in range(0, 1 << 18, 1024)]
        assert by_registers == sorted(by_registers, reverse=True)
        assert by_shared == sorted(by_shared, reverse=True)


def test_roofline_bounds() -> None:
    h100 = DEVICES[90]
    n = 8192
    product = roofline(2 * n**3, 3 * n * n * 2, h100)
    assert product.bound == "compute" and product.seconds == pytest.approx(2 * n**3 / 798e12)
    copy = roofline(0, 3e9, h100)
    assert copy.bound == "memory" and copy.seconds == pytest.approx(1e-3)
    assert copy.fraction(2e-3) == pytest.approx(0.5)
    ridge = roofline(product.ridge * 1e9, 1e9, h100)
    assert ridge.compute_seconds == pytest.approx(ridge.memory_seconds)
    with pytest.raises(ToolchainError, match="fp8"):
        roofline(1, 1, DEVICES[80], "fp8")


def test_the_table_names_kernels_limits_and_spills() -> None:
    from rich.console import Console

    from ringc.codegen.inspect.tables import resource_table

    used = read_resources(parse_resource_usage(USAGE)[0], SASS, PTX, shared_bytes=65536, num_warps=8)
    console = Console(width=200, record=True, file=StringIO())
    console.print(resource_table([("matmul [a]", 90, used)]))
    text = console.export_text()
    for expected in (
        "matmul [a]",
        "sm_90",
        "168",
        "1 st, 1 ld, 24 B",
        "64.0 KiB",
        "12%",
        "registers",
        "HGMMA 2",
        "1 wgmma from registers",
    ):
        assert expected in text


# The interpreter's worker.

KERNELS = Path(__file__).parent / "kernels"


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 65])
def test_row_kernel_on_views(interpreter: InterpreterWorker, tokens: int) -> None:
    import torch

    torch.manual_seed(tokens)
    packed = torch.randn(tokens, 3, 100)
    x = packed[:, 1]
    weight, y = torch.randn(100), torch.full((tokens, 100), torch.nan)
    interpreter.run(KERNELS / "rms_norm.py", x, weight, y, eps=1e-5)
    wide = x.double()
    expected = wide * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "inner", "width"), [(1, 40, 33), (17, 64, 96), (65, 100, 20)])
def test_matmul(interpreter: InterpreterWorker, tokens: int, inner: int, width: int) -> None:
    import torch

    torch.manual_seed(tokens)
    x, w, y = torch.randn(tokens, inner), torch.randn(width, inner), torch.full((tokens, width), torch.nan)
    interpreter.run(KERNELS / "matmul.py", x, w, y)
    torch.testing.assert_close(y.double(), x.double() @ w.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65])
def test_lightning_chunk_with_state(interpreter: InterpreterWorker, tokens: int) -> None:
    import torch

    torch.manual_seed(tokens)
    heads, width = 3, 32
    qkv = torch.randn(tokens, 3, heads, width)
    decay = torch.tensor([0.5, 0.05, 0.001])
    state = torch.randn(heads, width, width)
    out = torch.full((tokens, heads, width), torch.nan)
    s = state.double()
    expected = []
    for t in range(tokens):
        q, k, v = qkv[t].double()
        s = s * torch.exp(-decay.double())[:, None, None] + k[:, :, None] * v[:, None, :]
        expected.append(torch.einsum("hi,hij->hj", q, s))
    q, k, v = (qkv[:, i].contiguous() for i in range(3))
    interpreter.run(KERNELS / "lightning.py", q, k, v, out, -decay * 1.4426950408889634, state, chunk=16)
    torch.testing.assert_close(out.double(), torch.stack(expected), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(state.double(), s, rtol=1e-5, atol=1e-4)


def test_a_store_outside_of_a_tensor_is_an_error(interpreter: InterpreterWorker) -> None:
    import torch

    from ringc.errors import CodegenError

    with pytest.raises(CodegenError, match="wrote outside of its tensors: behind the end of storage 1 of 1"):
        interpreter.run(KERNELS / "misbehaving.py", torch.zeros(10))


def test_a_load_outside_of_a_tensor_gives_nan(interpreter: InterpreterWorker) -> None:
    import torch

    x, y = torch.ones(10), torch.zeros(10)
    interpreter.run(KERNELS / "misbehaving.py", x, y, function="read")
    assert y.isnan().tolist() == [False] * 9 + [True]


def test_errors_of_a_kernel_come_back_with_their_line(interpreter: InterpreterWorker) -> None:
    import torch

    from ringc.errors import CodegenError

    with pytest.raises(
        CodegenError, match=r"(?s)misbehaving.py: undefined failed: .*not_a_function.*no_such_function\[\(1,\)\]"
    ):
        interpreter.run(KERNELS / "misbehaving.py", torch.zeros(1), function="undefined")
    with pytest.raises(CodegenError, match="no_function"):
        interpreter.run(KERNELS / "misbehaving.py", torch.zeros(1), function="no_function")
    with pytest.raises(CodegenError, match="No such file"):
        interpreter.run(KERNELS / "nowhere.py", torch.zeros(1))


def test_a_crash_is_explained_and_survived(interpreter: InterpreterWorker) -> None:
    import torch

    y = torch.zeros(1)
    with pytest.raises(
        ToolchainError, match=r"Triton's interpreter died \(signal SIGABRT\) while running crash of .*misbehaving.py"
    ):
        interpreter.run(KERNELS / "misbehaving.py", y, function="crash")
    interpreter.run(KERNELS / "misbehaving.py", y, function="who")
    assert int(y) == interpreter.pid
    os.kill(interpreter.pid, signal.SIGKILL)
    before = int(y)
    process = interpreter._worker._process
    assert process is not None
    process.wait()
    interpreter.run(KERNELS / "misbehaving.py", y, function="who")
    assert int(y) == interpreter.pid != before
    interpreter.restart()
    interpreter.run(KERNELS / "misbehaving.py", y, function="who")
    assert int(y) == interpreter.pid


def test_a_kernel_that_hangs_is_ended(interpreter: InterpreterWorker) -> None:
    import torch

    with pytest.raises(ToolchainError, match=r"ended after 1 s of running sleep"):
        interpreter.run(KERNELS / "misbehaving.py", torch.zeros(1), function="sleep", timeout=1)
    assert interpreter.pid is None


def test_an_edited_file_is_loaded_again(interpreter: InterpreterWorker, tmp_path: Path) -> None:
    import torch

    y = torch.zeros(2)
    for value in (1.0, 2.0):
        (tmp_path / "k.py").write_text(f"def launch(y):\n    y.fill_({value})\n")
        interpreter.run(tmp_path / "k.py", y)
        assert y.tolist() == [value, value]


def test_low_precision_is_refused_unless_asked_for(interpreter: InterpreterWorker) -> None:
    import torch

    from ringc.errors import CodegenError

    y = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(CodegenError, match="bfloat16"):
        interpreter.run(KERNELS / "misbehaving.py", y, function="who")
    with InterpreterWorker(allow_low_precision=True) as worker:
        worker.run(KERNELS / "misbehaving.py", y, function="who")
    assert (y != 0).all()


def test_versions_that_cannot_interpret_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from ringc.codegen.triton import interpret

    monkeypatch.setattr(interpret, "installed_versions", lambda: {"triton": "3.6.0", "numpy": "2.4.1"})
    with pytest.raises(ToolchainError, match=r"(?s)run-time|run time.*numpy<2.4"):
        interpret.InterpreterWorker()
