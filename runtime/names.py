"""Names that manifests and host programs use."""

from __future__ import annotations

TORCH_NAMES = {
    "f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
    "i64": "int64", "i32": "int32", "i8": "int8", "bool": "bool",
}  # fmt: skip
"""Element types by the names that manifests and programs use, and as torch calls them: looking at an artifact needs no torch."""
