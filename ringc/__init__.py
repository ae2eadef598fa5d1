"""ringc: a compiler for hybrid linear-attention language models.

    >>> import ringc
    >>> ringc.compile("ring-tiny", "build/tiny")
    >>> model = ringc.load("build/tiny", weights="random:0")
    >>> logits = model([[1, 2, 3]])

Names are loaded when first used: importing this package imports neither torch nor a compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ringc import errors
    from ringc.api import compile  # noqa: A004 - as in `re.compile`
    from ringc.runtime.cache import Cache
    from ringc.runtime.decoding import Decoder
    from ringc.runtime.model import Model, load
    from ringc.runtime.sample import Sampling

_PLACE_OF = {
    "compile": "ringc.api",
    "load": "ringc.runtime.model",
    "Model": "ringc.runtime.model",
    "Cache": "ringc.runtime.cache",
    "Decoder": "ringc.runtime.decoding",
    "Sampling": "ringc.runtime.sample",
}

__all__ = ["Cache", "Decoder", "Model", "Sampling", "__version__", "compile", "errors", "load"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("ringc.errors")
    if name in _PLACE_OF:
        return getattr(import_module(_PLACE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
