"""How many blocks of a kernel fit on a multiprocessor at once, and what limits them.

Limits are those of the CUDA programming guide's table of compute capabilities; allocation follows the occupancy
calculator: registers go to warps in units of 256, shared memory to blocks in units of 128 bytes plus 1 KiB that the
system keeps for each block.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringc.errors import ToolchainError


@dataclass(frozen=True)
class SmLimits:
    """What one streaming multiprocessor has."""

    registers: int
    registers_per_thread: int
    shared_bytes: int
    shared_bytes_per_block: int
    warps: int
    blocks: int
    register_unit: int = 256
    shared_unit: int = 128
    shared_reserved: int = 1024


SM_LIMITS: dict[int, SmLimits] = {
    80: SmLimits(65536, 255, 164 * 1024, 163 * 1024, 64, 32),
    90: SmLimits(65536, 255, 228 * 1024, 227 * 1024, 64, 32),
    100: SmLimits(65536, 255, 228 * 1024, 227 * 1024, 64, 32),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps resident on one multiprocessor.

    Attributes:
        blocks: resident blocks; 0 where the kernel can't be launched.
        warps: resident warps.
        fraction: warps over the most that the multiprocessor holds.
        limiter: what runs out first: "registers", "shared memory", "warps" or "blocks".
    """

    blocks: int
    warps: int
    fraction: float
    limiter: str


def occupancy(arch: int, *, registers: int, shared_bytes: int, num_warps: int) -> Occupancy:
    """Estimate occupancy on `arch` of a kernel with `registers` a thread and `shared_bytes`, `num_warps` a block.

    Raises:
        ToolchainError: the architecture's limits aren't known.
    """
    limits = sm_limits(arch)
    per_warp = _round_up(max(registers, 1) * 32, limits.register_unit)
    per_block = _round_up(shared_bytes + limits.shared_reserved, limits.shared_unit)
    fits = {
        "registers": limits.registers // per_warp // num_warps if registers <= limits.registers_per_thread else 0,
        "shared memory": limits.shared_bytes // per_block if shared_bytes <= limits.shared_bytes_per_block else 0,
        "warps": limits.warps // num_warps,
        "blocks": limits.blocks,
    }
    limiter = min(fits, key=lambda name: fits[name])
    blocks = fits[limiter]
    return Occupancy(blocks, blocks * num_warps, blocks * num_warps / limits.warps, limiter)


def sm_limits(arch: int) -> SmLimits:
    """Limits of an architecture.

    Raises:
        ToolchainError: they aren't known.
    """
    if arch not in SM_LIMITS:
        known = ", ".join(f"sm_{known}" for known in SM_LIMITS)
        raise ToolchainError(f"the limits of sm_{arch} aren't known", help=f"known: {known}")
    return SM_LIMITS[arch]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
