"""Strict YAML 1.2; a comment beside a case has the value that `yaml.safe_load` would read."""

from __future__ import annotations

from pathlib import Path

import pytest

from wikillm.config.yaml_file import parse_value, parse_yaml, read_yaml
from wikillm.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # "1e-4"
        ("3e8", 3e8),  # "3e8"
        ("no", "no"),  # False
        ("on", "on"),  # True
        ("yes", "yes"),  # True
        ("1:30", "1:30"),  # 90
        ("012", 12),  # 10
        ("0x10", "0x10"),  # 16
        ("2024-01-01", "2024-01-01"),  # a date
        ("=", "="),  # an error
        ("1_000", 1000),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("'no'", "no"),
        ('"5"', "5"),
        ("[a, 'b, c', 3]", ["a", "b, c", 3]),
        ("0.5b", "0.5b"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_every_key_has_its_line_and_its_dotted_name() -> None:
    entries = parse_yaml(
        "# a comment\nrun:\n  name: x\n\nobserve:\n  swanlab:\n    mode: local\n", "f.yaml"
    )
    assert {key: entry.line for key, entry in entries.items()} == {
        "run": 2,
        "run.name": 3,
        "observe": 5,
        "observe.swanlab": 6,
        "observe.swanlab.mode": 7,
    }
    assert entries["run"].is_mapping
    assert not entries["run.name"].is_mapping


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a appears twice"),
        ("a.b: 1\na:\n  b: 2\n", 3, "a.b appears twice"),
        ("a: &x [1]\nb: [*x, *x]\n", 2, "Aliases"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "Tags"),
        ("a: !!int '3'\n", 1, "Tags"),
        ("- a\n- b\n", 1, "mapping of keys"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ("a: 1\nb: \x07\n", 2, "not YAML"),
        ("a: " + "[" * 50 + "]" * 50, 1, "Nested deeper"),
        ("? [a]\n: 1\n", 1, "A key must be a word"),
    ],
)
def test_a_refusal_names_the_line(text: str, line: int, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, "f.yaml")
    assert what in refused.value.what
    assert refused.value.got == f"f.yaml:{line}"


def test_a_large_binary_or_missing_file_is_refused(tmp_path: Path) -> None:
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_text("a: " + "x" * 2**20)
    binary.write_bytes(b"a: \xff\xfe")
    for path, what in (
        (large, "larger than 1 MiB"),
        (binary, "not UTF-8"),
        (tmp_path / "absent.yaml", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_yaml(path)


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "bom.yaml")["a"].value == 1
    assert read_yaml(tmp_path / "empty.yaml") == {}
