"""Descriptions of models: the spec language, the presets, the import of published configurations.

    >>> from ringc.model_defs import load_spec
    >>> load_spec("ring-mini-linear-2.0").layer_kind(4)
    'softmax'

Names are loaded when first used: importing this package imports neither pydantic nor ruamel.yaml, and nothing here imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringc.model_defs.checkpoint_config import import_checkpoint
    from ringc.model_defs.loading import load_spec, parse_spec
    from ringc.model_defs.parameters import (
        Parameter,
        active_parameter_count,
        checkpoint_parameters,
        kv_bytes_per_token,
        parameter_bytes,
        parameter_count,
        state_bytes_per_sequence,
    )
    from ringc.model_defs.presets import list_presets, preset_path, preset_text
    from ringc.model_defs.schema import json_schema
    from ringc.model_defs.spec import Spec
    from ringc.model_defs.writing import spec_yaml

_MODULE_OF = {
    "import_checkpoint": "checkpoint_config",
    "load_spec": "loading",
    "parse_spec": "loading",
    "Parameter": "parameters",
    "active_parameter_count": "parameters",
    "kv_bytes_per_token": "parameters",
    "parameter_bytes": "parameters",
    "parameter_count": "parameters",
    "checkpoint_parameters": "parameters",
    "state_bytes_per_sequence": "parameters",
    "list_presets": "presets",
    "preset_path": "presets",
    "preset_text": "presets",
    "json_schema": "schema",
    "Spec": "spec",
    "spec_yaml": "writing",
}

__all__ = [
    "Parameter",
    "Spec",
    "active_parameter_count",
    "checkpoint_parameters",
    "import_checkpoint",
    "json_schema",
    "kv_bytes_per_token",
    "list_presets",
    "load_spec",
    "parameter_bytes",
    "parameter_count",
    "parse_spec",
    "preset_path",
    "preset_text",
    "spec_yaml",
    "state_bytes_per_sequence",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
