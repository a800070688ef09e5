"""The JSON Schema accepts the shipped YAML files and refuses what an editor should underline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from wikillm.config.json_schema import json_schema
from wikillm.config.keys import all_keys, nested
from wikillm.config.load import load
from wikillm.config.resolved import to_yaml
from wikillm.config.yaml_file import parse_yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted([*ROOT.glob("wikillm/presets/*/*.yaml"), *ROOT.glob("examples/*.yaml")])
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def read(text: str) -> dict[str, Any]:
    entries = parse_yaml(text, "a.yaml")
    return nested({key: entry.value for key, entry in entries.items() if not entry.is_mapping})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_files_are_valid(path: Path) -> None:
    VALIDATOR.validate(read(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "preset: demo\ntrain:\n  max_tokens: 2.5B\n  gradient_checkpointing: true",
        "data:\n  path: [a.jsonl, b.jsonl]\n  max_text_bytes: 64MiB\n  val_fraction: auto",
        "data:\n  path: null\n  mixture: [{name: a, weight: 1, path: a.jsonl}, 'b:2:b.jsonl']",
        "train:\n  learning_rate: 5e-4\n  per_device_train_batch_size: auto",
    ],
)
def test_every_spelling_is_valid(text: str) -> None:
    VALIDATOR.validate(read(text))


def test_a_resolved_configuration_is_valid() -> None:
    VALIDATOR.validate(read(to_yaml(load("demo"))))


@pytest.mark.parametrize(
    "text",
    [
        "train:\n  max_stepz: 5",
        "trane: {max_steps: 5}",
        "train:\n  optimizer: sgd",
        "model:\n  hidden_size: wide",
        "data:\n  workers: 0",
        "preset: demmo",
    ],
)
def test_mistakes_are_refused(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(read(text))


def test_every_key_has_a_description() -> None:
    schema = json_schema()
    for name, key in all_keys().items():
        node = schema
        for part in name.split("."):
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
            node = node["properties"][part]
        assert node["description"] == key.doc and "\n" not in key.doc
