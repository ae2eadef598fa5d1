"""Registers, spills, shared memory and tensor-core instructions of a compiled GPU kernel.

Three sources: `cuobjdump --dump-resource-usage` (registers, stack, static shared memory), the disassembly (instruction
counts, which show spills and the kind of matrix instruction), and the PTX (which wgmma take their left operand from
registers: a known hazard).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ringc.errors import ToolchainError

#: "        /*0010*/                   @!P0 LDG.E.128 R4, desc[UR6][R4.64] ;", with or without a predicate and a brace
#: of packed pairs.
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_USAGE = re.compile(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_WGMMA = re.compile(r"wgmma\.mma_async[^;]*;")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor, and which of its units it uses.

    Attributes:
        registers: 32-bit registers a thread.
        stack_bytes, local_bytes: thread-private memory, which lives in device memory: spills and indexed arrays.
        spill_stores, spill_loads: instructions that write and read that memory, each counted once however often it
            runs.
        shared_bytes: shared memory a block, static and dynamic.
        num_warps: warps a block.
        hmma, hgmma, qgmma, tcgen: tensor-core instructions: by warp; by warp group, 16 bit and tf32; by warp group, 8
            bit; of Blackwell.
        register_a_wgmma: warp-group products whose left operand comes from registers.
        async_copies: copies from device to shared memory that don't pass through registers, by address or by
            descriptor.
        atomics: atomic operations on device memory.
        instructions: all instructions.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    num_warps: int
    hmma: int
    hgmma: int
    qgmma: int
    tcgen: int
    register_a_wgmma: int
    async_copies: int
    atomics: int
    instructions: int

    @property
    def spills(self) -> bool:
        """Whether any thread keeps values in device memory for want of registers."""
        return self.spill_stores > 0 or self.spill_loads > 0 or self.local_bytes > 0

    @property
    def threads(self) -> int:
        return 32 * self.num_warps

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> Resources:
        return cls(**{field.name: int(values[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class ResourceUsage:
    """What cuobjdump says of one function: registers a thread, bytes of stack, static shared and local memory."""

    function: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_bytes: int


def parse_resource_usage(text: str) -> list[ResourceUsage]:
    """The functions in the output of `cuobjdump --dump-resource-usage`."""
    return [ResourceUsage(m[1], int(m[2]), int(m[3]), int(m[4]), int(m[5])) for m in _USAGE.finditer(text)]


def count_opcodes(sass: str) -> Counter[str]:
    """How often each opcode, without its modifiers, stands in a disassembly."""
    return Counter(_INSTRUCTION.findall(sass))


def count_register_a_wgmma(ptx: str) -> int:
    """wgmma instructions whose left operand is a list of registers rather than a descriptor of shared memory."""
    return sum(1 for text in _WGMMA.findall(ptx) if text.count("{") >= 2)


def read_resources(usage: ResourceUsage, sass: str, ptx: str, *, shared_bytes: int, num_warps: int) -> Resources:
    """Put the three sources together.

    Args:
        usage: cuobjdump's row of the kernel.
        sass, ptx: the kernel's texts.
        shared_bytes: dynamic shared memory a block, as the compiler's metadata states it.
        num_warps: warps a block as launched.
    """
    ops = count_opcodes(sass)

    def count(*names: str) -> int:
        return sum(ops[name] for name in names)

    return Resources(
        registers=usage.registers,
        stack_bytes=usage.stack_bytes,
        local_bytes=usage.local_bytes,
        spill_stores=ops["STL"],
        spill_loads=ops["LDL"],
        shared_bytes=shared_bytes,
        num_warps=num_warps,
        hmma=ops["HMMA"],
        hgmma=ops["HGMMA"],
        qgmma=ops["QGMMA"],
        tcgen=sum(n for name, n in ops.items() if re.fullmatch(r"UTC\w*MMA", name)),
        register_a_wgmma=count_register_a_wgmma(ptx),
        async_copies=count("LDGSTS", "UTMALDG", "UBLKCP"),
        atomics=count("ATOM", "ATOMG", "RED", "REDG"),
        instructions=ops.total(),
    )


def dump_resource_usage(cubin: bytes, cuobjdump: Path) -> list[ResourceUsage]:
    """Resource usage of every function of a binary.

    Raises:
        ToolchainError: cuobjdump can't be run or doesn't know the binary.
    """
    return parse_resource_usage(_run_on(cubin, [str(cuobjdump), "--dump-resource-usage"]))


def disassemble(cubin: bytes, nvdisasm: Path) -> str:
    """The SASS of a binary, annotated with the lines of the kernel file that each instruction comes from.

    Takes about 0.35 s however small the kernel, nearly all of it nvdisasm's own start.

    Raises:
        ToolchainError: nvdisasm can't be run or doesn't know the binary.
    """
    # Data-flow analysis costs 0.15 s and adds nothing that is shown.
    return _run_on(cubin, [str(nvdisasm), "--print-code", "--print-line-info", "--no-dataflow"])


def _run_on(cubin: bytes, command: list[str]) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([*command, file.name], capture_output=True, text=True, check=True, timeout=120)
        except subprocess.CalledProcessError as error:
            raise ToolchainError(
                f"{Path(command[0]).name} can't read a kernel: {error.stderr.strip()[:300]}"
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"can't run {command[0]}: {error}") from error
    return done.stdout
