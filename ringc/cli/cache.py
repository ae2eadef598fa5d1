"""`ringc cache`."""

from __future__ import annotations

from typing import Annotated

import typer


def cache(action: Annotated[str, typer.Argument(help="size or clear.")] = "size") -> None:
    """Show how large the cache of built kernels is, or clear it. It lies in $RINGC_CACHE_DIR or ~/.cache/ringc."""
    from ringc.cli.console import count, out, size
    from ringc.codegen.cache import Cache
    from ringc.errors import UsageError

    kernels = Cache()
    match action:
        case "size":
            found = kernels.size()
            out(f"{kernels.folder}: {count(found.entries)} kernels, {size(found.bytes)}")
        case "clear":
            gone = kernels.clear()
            out(f"{kernels.folder}: removed {count(gone.entries)} kernels, {size(gone.bytes)}")
        case _:
            raise UsageError(f"the cache can't '{action}'", help="use `ringc cache size` or `ringc cache clear`")
