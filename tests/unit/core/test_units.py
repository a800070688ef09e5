"""Quantities as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.units import format_count, format_seconds, format_size, parse_count, parse_size

COUNTS = {
    "0": 0,
    7: 7,
    "1_000_000": 10**6,
    "500k": 500_000,
    "2.6B": 2_600_000_000,
    "1e6": 10**6,
    1e6: 10**6,
    "0.1B": 10**8,
    " 3 M ": 3 * 10**6,
    "2.01K": 2010,
    "1e99": 10**99,
    "9007199254740993": 9007199254740993,
}
SIZES = {
    "80GiB": 85_899_345_920,
    "6MB": 6_000_000,
    "64mib": 67_108_864,
    "4096": 4096,
    "12B": 12,
    "1.5KiB": 1536,
    "7.9GiB": 8_482_560_409,  # and 0.6 of a byte
}
NO_COUNTS = ["", "-5", "M", "1.5", "3 apples", "1e-3", "0x10", "1,000", "inf", "nan", "٣", True]


def test_quantities_are_parsed_exactly() -> None:
    assert {text: parse_count(text) for text in COUNTS} == COUNTS
    assert {text: parse_size(text) for text in SIZES} == SIZES


@pytest.mark.parametrize("text", [*NO_COUNTS, "1e999999999"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        parse_count(text)


@given(st.integers(0, 2**53))
def test_whole_numbers_are_parsed_in_every_form(value: int) -> None:
    assert parse_count(str(value)) == parse_count(f"{value:_}") == parse_size(f"{value}B") == value


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (format_count, {0: "0", 9_999: "9999", 10_000: "10K", 123_277_824: "123.3M", -2e6: "-2M"}),
        (format_size, {0: "0 B", 1023: "1023 B", 1024: "1 KiB", 8 * 2**30: "8 GiB"}),
        (format_seconds, {0.04: "0.0s", 59.94: "59.9s", 72.4: "1m12s", 3725: "1h02m"}),
    ],
)
def test_quantities_are_formatted(write: Callable[[float], str], texts: dict[float, str]) -> None:
    assert {value: write(value) for value in texts} == texts


@given(
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.sampled_from([("K", 3), ("M", 6), ("B", 9), ("T", 12)]),
)
def test_decimal_fractions_are_exact(digits: int, places: int, suffix: tuple[str, int]) -> None:
    name, power = suffix
    fraction = f".{digits % 10**places:0{places}d}" if places else ""
    text = f"{digits // 10**places}{fraction}{name}"
    assert parse_count(text) == digits * 10 ** (power - places)
