"""Collected problems become one error; near names are found."""

from __future__ import annotations

import pytest

from wikillm.config.load import load
from wikillm.core.errors import ConfigError, DataError, Problems, did_you_mean


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([("A is wrong.", "a", "b")], "A is wrong.\n  a\n  fix: b"),
        (
            [("A is wrong.", None, "b"), ("C is wrong.",)],
            "2 problems.\n  1. A is wrong.\n    fix: b\n  2. C is wrong.",
        ),
    ],
    ids=["one", "two"],
)
def test_problems_are_raised_together(found: list[tuple[str, ...]], message: str) -> None:
    problems = Problems(DataError)
    problems.raise_if_any()  # nothing to raise yet
    for problem in found:
        problems.add(*problem)
    assert len(problems) == len(found)
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("word", "near"),
    [("learing_rate", "learning_rate"), ("max_step", "max_steps"), ("qqq", None), ("", None)],
)
def test_did_you_mean(word: str, near: str | None) -> None:
    assert did_you_mean(word, ["learning_rate", "max_steps", "weight_decay"]) == near


def test_a_value_of_thousands_of_digits_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError) as refused:
        load("demo", ["train.max_eval_tokens=" + "9" * 5000])
    assert "is not a count" in str(refused.value) and "set_int_max_str" not in str(refused.value)
    assert len(str(refused.value)) < 3000
