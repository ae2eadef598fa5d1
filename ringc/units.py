"""Numbers with their units, for people. Imports nothing, so that every layer may use it."""


def size(number: float) -> str:
    """Bytes: `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
