"""`ringc cache`."""

from __future__ import annotations

from typing import Annotated

import typer


def cache(action: Annotated[str, typer.Argument(help="size or clear.")] = "size") -> None:
    """Show the size of the cache of built kernels, or clear it.

    It lies in $RINGC_CACHE_DIR, or in ~/.cache/ringc.
    """
    from ringc.cli.console import count, out
    from ringc.codegen.cache import Cache, CacheSize
    from ringc.errors import UsageError
    from ringc.units import size

    def kernels_of(found: CacheSize) -> str:
        return f"{count(found.entries)} kernel{'s' * (found.entries != 1)}, {size(found.bytes)}"

    kernels = Cache()
    match action:
        case "size":
            found = kernels.size()
            out(f"{kernels.folder}: {kernels_of(found)}")
        case "clear":
            gone = kernels.clear()
            out(f"{kernels.folder}: removed {kernels_of(gone)}")
        case _:
            raise UsageError(f"the cache can't '{action}'", help="use `ringc cache size` or `ringc cache clear`")
