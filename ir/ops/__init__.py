"""All operations. A new one is a class in a file here, and a line below if the file is new."""

from ringc.ir.ops import (
    call,
    composite,
    index,
    mixers,
    pointwise,
    products,
    reduce,
    routing,
    rows,
    scan,
    shape,
    source,
    state,
)

__all__ = [
    "call",
    "composite",
    "index",
    "mixers",
    "pointwise",
    "products",
    "reduce",
    "routing",
    "rows",
    "scan",
    "shape",
    "source",
    "state",
]
