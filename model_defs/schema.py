"""The spec language as a JSON Schema: completion, checks and descriptions in editors that know YAML."""

from __future__ import annotations

from typing import Any


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a spec file. Rules between fields are not in it; `load_spec` checks those."""
    from ringc.model_defs.spec import Spec

    schema = Spec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "ringc architecture spec"}
