"""`ringc schema`."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of the spec language, for editors."""
    import json

    from ringc.cli.console import out
    from ringc.model_defs import json_schema

    out(json.dumps(json_schema(), indent=2))
