"""`ringc presets`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer


def presets(
    name: Annotated[
        str | None, typer.Argument(help="Print this preset's YAML, to copy and edit.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List the architectures that ship with ringc, or print one."""
    import json

    from ringc.cli.console import count, out, table
    from ringc.model_defs import list_presets, load_spec, preset_text
    from ringc.units import size

    if name is not None:
        if as_json:
            out(json.dumps(load_spec(name).model_dump(mode="json"), indent=2))
        else:
            sys.stdout.write(preset_text(name))
        return
    found = [_facts(preset) for preset in list_presets()]
    if as_json:
        out(json.dumps(found, indent=2))
        return
    rows = [
        (
            f["name"],
            f["description"],
            count(f["parameters"]),
            count(f["active_parameters"]),
            size(f["state_bytes_per_sequence"]),
            size(f["kv_bytes_per_token"]),
        )
        for f in found
    ]
    columns = ("preset", "", "parameters", "active", "state / sequence", "KV / token")
    table("presets", columns, rows, left=2)


def _facts(name: str) -> dict[str, Any]:
    from ringc.model_defs import (
        active_parameter_count,
        kv_bytes_per_token,
        load_spec,
        parameter_count,
        state_bytes_per_sequence,
    )

    spec = load_spec(name)
    return {
        "name": name,
        "description": spec.description,
        "parameters": parameter_count(spec),
        "active_parameters": active_parameter_count(spec),
        "state_bytes_per_sequence": state_bytes_per_sequence(spec),
        "kv_bytes_per_token": kv_bytes_per_token(spec),
    }
