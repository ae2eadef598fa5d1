"""Programmatic dependent launch: a kernel's programs start while the launch before ends, and wait where they need what it wrote.

Between two kernels of a graph that depend on each other a GPU idles for a microsecond or more: programs of one end, those of the next are
placed and compute their addresses. Here each kernel says that the next may be placed, and waits for the one before in front of its first
read. Every program of every kernel waits, also one that then has nothing to do: so all launches before the last one have ended, too, and
memory can be written again by a kernel further on. (PTX ISA, `griddepcontrol`; from compute capability 9.0 on.)

When it says so depends on what its template marks. A kernel that reads its weights or its state first says it at its beginning: the next
one's programs are small, and its reads keep memory busy while this one ends. One that could read nothing early says it right behind its
wait, so that the next may read what was there when all programs of this one had waited (`ringc.passes.early`). So does the choice of
experts, behind which one row's expert product reads that row and the shared expert's weights. Others say it in front of their last stores:
programs with much shared memory that are placed early crowd on a few processors (a step of one sequence: 1.62 ms without overlap, 1.96 with
all placed at the beginning, 1.42 so). Where those stores are in a branch or a loop, it is in front of that, as in linear attention and the
experts' products of a prompt, where it makes no difference (8192 tokens: 41.3 ms so, 41.8 in front of the stores, 41.2 without).
"""

from __future__ import annotations

import ast

from ringc.codegen.triton.jobs import PINNED, read_jobs

FIRST_ARCH = 90
"""Compute capability times ten from which on GPUs have it."""

READ_EARLY = "# Up to here nothing is read that the kernel in front makes."
"""The line of a kernel at which it waits, in the place of its first."""

READ_FEW = "# Up to here nothing is read that the kernel in front makes; behind it the next kernel may be placed."
"""The same of a kernel that reads little before, and lets the next one be placed behind its wait."""

READ_LATE = "# From here on all is there, and the next kernel may be placed."
"""The same of a kernel that reads nothing before."""

READ_ASKED = "# What was asked for stays in front of what follows."
"""A line behind loads that a compiler must not move down: it waits once more, which takes no time."""

MARKS = frozenset((READ_EARLY, READ_FEW, READ_LATE))
"""The lines at which a function waits."""

NEXT = "tl.extra.cuda.gdc_launch_dependents()"
WAIT = "tl.extra.cuda.gdc_wait()"


def overlapping(text: str, name: str) -> str:
    """A kernel file in which each launched function waits for the launch before, and lets the next one begin.

    Where a launched function only decides which of several others its program runs, those wait: each has a mark.

    Args:
        text: of the file, with `JOBS`.
        name: of the kernel, for messages.

    Raises:
        CodegenError: the file has no usable `JOBS`.
    """
    launched = {str(job["kernel"]) for job in read_jobs(text, name)}
    lines = text.splitlines()
    functions = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    known = {f.name for f in functions}
    marked = {f.name for f in functions if any(lines[i].strip() in MARKS for i in range(f.lineno, f.end_lineno or 0))}
    for function in sorted(functions, key=lambda f: -f.lineno):
        indent = " " * function.body[0].col_offset
        first = _first_line(function, lines)
        marks = {line.strip(): i for i, line in enumerate(lines[first : function.end_lineno], start=first)}
        if READ_ASKED in marks:
            lines.insert(marks[READ_ASKED] + 1, indent + WAIT)
        if READ_EARLY in marks:
            lines.insert(marks[READ_EARLY] + 1, indent + WAIT)
            lines.insert(first, indent + NEXT)
        elif late := {READ_FEW, READ_LATE} & marks.keys():
            (mark,) = late
            lines[marks[mark] + 1 : marks[mark] + 1] = [indent + WAIT, indent + NEXT]
        elif function.name in launched and (called := known & _called(function)) & marked:
            assert called <= marked, f"{name}: a program may run a function that doesn't wait"
        elif function.name in launched:
            lines.insert(_stores(function), indent + NEXT)
            lines.insert(first, indent + WAIT)
    text = "\n".join(lines) + "\n"
    assert text.count(PINNED) == 1
    return text.replace(PINNED, f'{PINNED}, "launch_pdl": True')


def _first_line(function: ast.FunctionDef, lines: list[str]) -> int:
    """Where a function's statements begin, with the comments in front of the first."""
    first = function.body[1] if ast.get_docstring(function) is not None else function.body[0]
    begin = first.lineno - 1
    while lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    return begin


def _called(function: ast.FunctionDef) -> set[str]:
    """The names of the functions that a function calls."""
    return {n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def _stores(function: ast.FunctionDef) -> int:
    """The line of the stores that a function ends with, or of its last statement."""
    last = function.body[-1]
    for statement in reversed(function.body):
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
            break
        if ast.unparse(statement.value.func) != "tl.store":
            break
        last = statement
    return last.lineno - 1
