"""The chart of `ringc bench --png`: how long each kernel takes of a step, beside its floor."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ringc.errors import ToolchainError, UsageError
from ringc.json_file import write_whole

if TYPE_CHECKING:
    from ringc.runtime.bench import Report

MOST = 30
"""Kernels that are drawn: those that take most."""


def check_matplotlib() -> None:
    """Raise unless charts can be drawn.

    Raises:
        ToolchainError: matplotlib isn't installed.
    """
    if find_spec("matplotlib") is None:
        raise ToolchainError(
            "a chart needs matplotlib, which isn't installed", help="pip install 'ringc[plots]', or leave --png out"
        )


def draw_kernels(path: Path, report: Report) -> None:
    """A horizontal bar for each kernel, the one that takes most on top, and within it its floor.

    Raises:
        UsageError: the file can't be written.
    """
    from matplotlib.figure import Figure

    shown = report.kernels[:MOST]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(shown))
    axes.barh(places, [k.seconds * 1e6 for k in shown], height=0.8, color="#9ecae1", label="measured")
    axes.barh(places, [k.floor * 1e6 for k in shown], height=0.4, color="#08519c", label="floor")
    axes.set_yticks(places, [f"{k.kernel} ({k.count})" for k in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds of a step, all launches")
    plan = report.plan
    axes.set_title(
        f"{report.artifact} for {report.target}, {plan.entry}, {plan.batch} x {plan.context} + {plan.tokens}"
    )
    axes.legend(loc="lower right")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_whole(path, data.getvalue(), "the chart", UsageError, "choose another file with --png")
