"""The JSON Schema of a run's YAML file, with which editors complete and describe keys."""

from __future__ import annotations

from typing import Any

from wikillm.config.origin import LAYERS
from wikillm.config.presets import preset_names
from wikillm.config.schema import RunConfig

_FILE_KEYS: dict[str, dict[str, Any]] = {
    "preset": {"description": "The run preset that this file is based on."},
    "about": {"type": "string", "description": "One sentence about a preset; has no effect."},
    "parameters": {"type": "integer", "description": "Parameter count of a model preset."},
    "layers": {
        "description": "Written to config.resolved.yaml: the layer that each key came from.",
        "type": "object",
        "properties": {layer: {"type": "array", "items": {"type": "string"}} for layer in LAYERS},
    },
}
"""Keys of a file that are not settings of a run."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a file for `--config` and of a preset."""
    schema: dict[str, Any] = _without_noise(RunConfig.model_json_schema())
    preset = _FILE_KEYS["preset"] | {"enum": list(preset_names("runs"))}
    schema["properties"] = _FILE_KEYS | {"preset": preset} | schema["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "WikiLLM"} | schema


def _without_noise(node: Any) -> Any:
    """Remove pydantic's titles, and put each description on one line."""
    if isinstance(node, list):
        return [_without_noise(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _without_noise(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
    }
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return kept
