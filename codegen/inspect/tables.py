"""Resources of kernels as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ringc.codegen.inspect.occupancy import occupancy
from ringc.codegen.inspect.resources import Resources

if TYPE_CHECKING:
    from rich.table import Table


def resource_table(rows: Iterable[tuple[str, int, Resources]], *, title: str | None = None) -> Table:
    """One row a kernel.

    Args:
        rows: name, architecture and resources of each kernel.
        title: stands above the table.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("kernel", no_wrap=True)  # a name that is cut names nothing
    for column in ("arch", "warps", "registers", "local memory", "shared", "blocks/SM", "occupancy"):
        table.add_column(column, justify="right")
    table.add_column("limited by")
    table.add_column("tensor cores")
    for name, arch, used in rows:
        held = occupancy(arch, registers=used.registers, shared_bytes=used.shared_bytes, num_warps=used.num_warps)
        spills = (
            f"{used.spill_stores} st, {used.spill_loads} ld, {used.local_bytes + used.stack_bytes} B"
            if used.spills
            else "none"
        )
        table.add_row(
            Text(name),
            f"sm_{arch}",
            str(used.num_warps),
            str(used.registers),
            Text(spills, style="bold red" if used.spills else ""),
            f"{used.shared_bytes / 1024:.1f} KiB",
            str(held.blocks),
            f"{held.fraction:.0%}",
            held.limiter,
            tensor_core_summary(used),
        )
    return table


def tensor_core_summary(used: Resources) -> str:
    """Which matrix instructions a kernel uses and how many stand in its text, such as "HGMMA 16 (4 from registers)"."""
    counts = {"HGMMA": used.hgmma, "QGMMA": used.qgmma, "HMMA": used.hmma, "tcgen05": used.tcgen}
    text = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if used.register_a_wgmma:
        text += f" ({used.register_a_wgmma} wgmma from registers)"
    return text or "none"
