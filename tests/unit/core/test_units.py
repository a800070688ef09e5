"""Quantities as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.units import format_count, format_seconds, format_size, parse_count, parse_size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), (7, 7), ("1_000_000", 10**6), ("500k", 500_000), ("2.6B", 2_600_000_000), ("1e6", 10**6),
        (1e6, 10**6), ("0.1B", 10**8), (" 3 M ", 3 * 10**6), ("2.01K", 2010), ("1e99", 10**99), ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_counts(text: str | float, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80GiB", 85_899_345_920),
        ("6MB", 6_000_000),
        ("64mib", 67_108_864),
        ("4096", 4096),
        ("12B", 12),
        ("1.5KiB", 1536),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-5",
        "M",
        "1.5",
        "3 apples",
        "1e-3",
        "0x10",
        "1,000",
        "inf",
        "nan",
        "1e999999999",
        "٣",
        True,
    ],
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_count(text)


@given(st.integers(0, 2**53))
def test_whole_numbers_come_back(value: int) -> None:
    assert parse_count(str(value)) == parse_count(f"{value:_}") == parse_size(f"{value}B") == value


@given(st.floats(1, 9e17))
def test_a_formatted_count_parses_to_nearly_the_same(value: float) -> None:
    text = format_count(value)
    if text.endswith(("K", "M", "B", "T")):
        assert parse_count(text) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9_999, "9999"),
        (10_000, "10K"),
        (123_277_824, "123.3M"),
        (7_616_000_000, "7.616B"),
        (-2e6, "-2M"),
    ],
)
def test_formatted_counts(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (8 * 2**30, "8 GiB")]
)
def test_formatted_sizes(value: float, text: str) -> None:
    assert format_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0s"), (59.94, "59.9s"), (72.4, "1m12s"), (3600, "1h00m"), (3725, "1h02m")],
)
def test_formatted_seconds(value: float, text: str) -> None:
    assert format_seconds(value) == text


@given(
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.sampled_from([("K", 3), ("M", 6), ("B", 9), ("T", 12)]),
)
def test_decimal_fractions_are_exact(digits: int, places: int, suffix: tuple[str, int]) -> None:
    name, power = suffix
    text = (
        f"{digits // 10**places}.{digits % 10**places:0{places}d}{name}"
        if places
        else f"{digits}{name}"
    )
    assert parse_count(text) == digits * 10 ** (power - places)
