"""Collected problems become one error; near names are found."""

from __future__ import annotations

import pytest

from wikillm.core.errors import ConfigError, DataError, Problems, WikiLLMError, did_you_mean


def test_no_problem_no_error() -> None:
    Problems(ConfigError).raise_if_any()


def test_one_problem_is_raised_as_it_is() -> None:
    problems = Problems(DataError)
    problems.add("A is wrong.", got="a", fix="b")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "A is wrong.\n  a\n  fix: b"


def test_many_problems_are_numbered_together() -> None:
    problems = Problems(ConfigError)
    problems.add("A is wrong.", fix="b")
    problems.add("C is wrong.")
    assert len(problems) == 2
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "2 problems.\n  1. A is wrong.\n    fix: b\n  2. C is wrong."


def test_only_what_is_known_is_shown() -> None:
    assert str(WikiLLMError("A.")) == "A."
    assert str(WikiLLMError("A.", fix="b")) == "A.\n  fix: b"


@pytest.mark.parametrize(
    ("word", "near"),
    [("learing_rate", "learning_rate"), ("max_step", "max_steps"), ("qqq", None), ("", None)],
)
def test_did_you_mean(word: str, near: str | None) -> None:
    assert did_you_mean(word, ["learning_rate", "max_steps", "weight_decay"]) == near
