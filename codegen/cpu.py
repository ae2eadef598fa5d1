"""This machine's processor: what code built here may use, and whether code built elsewhere can run here."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_X86 = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
)  # fmt: skip
_ARM = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2")
_CPUINFO = Path("/proc/cpuinfo")


def architecture() -> str:
    """`x86_64`, `aarch64`, ..., one name for each."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@cache
def name() -> str:
    """What the system calls this processor, with its widest vectors: `AMD EPYC avx512f`."""
    model = platform.processor() or architecture()
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return " ".join([model, *[f for f in ("avx512f", "avx2", "sve", "asimd") if f in features()][:1]])


@cache
def features() -> tuple[str, ...]:
    """Extensions that this processor has, of those that matter to generated code. Empty where the system doesn't say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    have: set[str] = set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            have = set(value.split())
            break
    return tuple(f for f in (*_X86, *_ARM) if f in have)


def missing_features(needed: tuple[str, ...]) -> list[str]:
    """The features among `needed` that this processor lacks; none where the system doesn't say what it has."""
    have = features()
    return [f for f in needed if f not in have] if have else []
