"""`data.mixture`: its spellings, the counts of its weights, and the mixtures that are refused."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.load import load
from wikillm.config.mixture import PERIOD, counts_of
from wikillm.config.resolved import to_yaml
from wikillm.config.schema_data import MixtureSource
from wikillm.core.errors import ConfigError

STEPS = ("--max_steps", "5")


def test_the_command_line_and_yaml_give_equal_mixtures_that_replace_the_presets_path(
    tmp_path: Path,
) -> None:
    typed = load(None, ["data.mixture=wiki:3:a.jsonl,web:1:s3://b/c", *STEPS])
    file = tmp_path / "run.yaml"
    file.write_text(
        "data:\n  mixture:\n    - name: wiki\n      weight: 3\n      path: a.jsonl\n"
        "    - {name: web, weight: 1, path: ['s3://b/c']}\ntrain:\n  max_steps: 5\n"
    )
    assert load(str(file)).config.data.mixture == typed.config.data.mixture
    assert typed.config.data.path == () and [s.weight for s in typed.config.data.mixture] == [3, 1]
    assert typed.config.data.mixture[1].path == ("s3://b/c",)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(typed))
    assert load(str(again)).config == typed.config
    assert load(str(again), ["data.path=x"]).config.data.mixture == ()  # and the other way round


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12))
def test_counts_sum_to_the_period_and_stay_within_one_of_the_share(weights: list[float]) -> None:
    sources = [MixtureSource(name=f"s{i}", weight=w, path=("x",)) for i, w in enumerate(weights)]
    counts = counts_of(sources)
    total = sum(Fraction(repr(w)) for w in weights)
    assert sum(counts) == PERIOD
    assert all(
        abs(c - Fraction(repr(w)) * PERIOD / total) < 1
        for c, w in zip(counts, weights, strict=True)
    )
    assert counts == counts_of([s.model_copy(update={"weight": s.weight * 2}) for s in sources])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data.mixture=a:1:x,a:2:y"], "2 sources named a"),
        (["data.mixture=a:0:x,b:1:y"], "weight of a in data.mixture must be above 0"),
        (["data.mixture=a:0.2:x,b:0.3:y"], r"sum to 0.5\.(.|\n)*a 0.4, b 0.6"),
        (["data.mixture=a:99999:x,b:1:y"], "share of b in data.mixture is below 1/8192"),
        (["data.mixture=a:x"], "is not NAME:WEIGHT:PATH"),
        (["data.mixture=a:much:x"], "valid number"),
        (["data.mixture=[{name: a, weight: 1}]"], "neither path nor store"),
        (["data.mixture=[{name: a, weight: 1, path: x, wait: 1}]"], "not permitted"),
        (["data.mixture=[{name: a, name: b}]"], "name appears twice"),
        (["data.mixture=a:1:x", "data.path=y"], "data.path and data.mixture exclude each other"),
    ],
)
def test_an_invalid_mixture_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, [*words, *STEPS])
    assert re.search(reason, str(caught.value)), str(caught.value)


def test_shares_and_whole_numbers_are_both_weights() -> None:
    shares = load(None, ["data.mixture=a:0.75:x,b:0.25:y", *STEPS]).config.data.mixture
    whole = load(None, ["data.mixture=a:3:x,b:1:y", *STEPS]).config.data.mixture
    assert counts_of(shares) == counts_of(whole) == (3072, 1024)
