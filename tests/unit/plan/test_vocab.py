from __future__ import annotations

from typing import Any

import pytest

from wikillm.config.origin import Origin
from wikillm.config.schema import ModelSection
from wikillm.core.errors import ConfigError
from wikillm.plan.vocab import resolve_vocab_size

PRESET, USER = Origin("preset", "p.yaml:1"), Origin("command line", "model.vocab_size=9000")


@pytest.mark.parametrize(
    ("stated", "length", "rows"),
    [
        ("auto", 151_646, 151_936),
        ("auto", 151_937, 152_064),
        ("auto", 8_000, 8_064),
        ("auto", 1, 128),
        (152_064, 151_665, 152_064),
        (8_064, 8_000, 8_064),
        (151_936, 8_000, 8_064),
        (8_064, 8_065, 8_192),
    ],
)
def test_auto_rounds_up_and_a_presets_number_stays_for_its_tokenizer(
    stated: Any, length: int, rows: int
) -> None:
    found, note = resolve_vocab_size(ModelSection(vocab_size=stated), PRESET, length)
    assert found == rows
    assert (note is not None) == (stated not in ("auto", rows))
    assert note is None or (str(rows) in note and str(stated) in note)


def test_the_users_vocabulary_is_kept_or_refused() -> None:
    model = ModelSection(vocab_size=9_000)
    assert resolve_vocab_size(model, USER, 5_000) == (9_000, None)
    with pytest.raises(ConfigError, match="9000 rows, the tokenizer 9001 ids") as refused:
        resolve_vocab_size(model, USER, 9_001)
    assert refused.value.fix == "model.vocab_size=9088, or auto"


def test_a_model_to_continue_from_keeps_its_rows() -> None:
    model = ModelSection(vocab_size=9_000, init_from="folder")
    assert resolve_vocab_size(model, PRESET, 100) == (9_000, None)
    with pytest.raises(ConfigError) as refused:
        resolve_vocab_size(model, PRESET, 9_001)
    assert "data.tokenizer=folder" in (refused.value.fix or "")
