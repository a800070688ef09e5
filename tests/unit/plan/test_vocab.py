from __future__ import annotations

import pytest

from wikillm.config.origin import DEFAULT, Origin
from wikillm.config.schema import ModelSection
from wikillm.core.errors import ConfigError
from wikillm.plan.vocab import resolve_vocab_size

PRESET, USER = Origin("preset", "p.yaml:1"), Origin("command line", "model.vocab_size=9000")


@pytest.mark.parametrize(
    ("length", "rows"),
    [
        (151_646, 151_936),
        (151_665, 151_936),
        (8_000, 8_064),
        (8_064, 8_064),
        (151_937, 152_064),
        (1, 128),
    ],
)
def test_auto_rounds_up(length: int, rows: int) -> None:
    assert resolve_vocab_size(ModelSection(), DEFAULT, length) == (rows, None)


@pytest.mark.parametrize(
    ("preset", "length"), [(151_936, 151_646), (152_064, 151_665), (8_064, 8_000)]
)
def test_a_presets_number_is_kept_for_its_tokenizer(preset: int, length: int) -> None:
    assert resolve_vocab_size(ModelSection(vocab_size=preset), PRESET, length) == (preset, None)


@pytest.mark.parametrize(
    ("preset", "length", "rows"),
    [(151_936, 8_000, 8_064), (8_064, 151_646, 151_936), (8_064, 8_065, 8_192)],
)
def test_a_presets_number_gives_way_to_another_tokenizer_and_says_so(
    preset: int, length: int, rows: int
) -> None:
    found, note = resolve_vocab_size(ModelSection(vocab_size=preset), PRESET, length)
    assert found == rows
    assert note is not None and str(rows) in note and str(preset) in note


def test_the_users_number_is_kept_or_refused() -> None:
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
