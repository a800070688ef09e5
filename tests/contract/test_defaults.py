"""docs/defaults.md: it names every key of data, model and train, with the schema's default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wikillm.config.keys import all_keys
from wikillm.config.resolved import typed_form

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| `([\w.]+)` \| `([^`]+)` \| (.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("page", ["defaults.md", "defaults.zh.md"])
def test_page_states_the_defaults_of_the_schema(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    keys = all_keys()
    for key, value, evidence in ROW.findall(text):
        assert typed_form(keys[key].default) == value, (key, evidence)


@pytest.mark.parametrize("page", ["defaults.md", "defaults.zh.md"])
def test_page_has_every_key_once(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = [key for key, *_ in ROW.findall(text)]
    others = re.findall(r"`([\w.]+)`", text.rpartition("\n## ")[2])
    expected = [key for key in all_keys() if key.startswith(("data.", "model.", "train."))]
    assert sorted([*rows, *others]) == sorted(expected)
