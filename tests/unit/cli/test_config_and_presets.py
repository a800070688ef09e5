"""`wikillm config show` and `wikillm presets` as a user or a program reads them."""

from __future__ import annotations

import json

import pytest

from wikillm.cli.main import main


def test_show_with_origin(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["config", "show", "--origin", "--max_steps", "5"]
    words += ["train.learning_rate=3e-4", "--deepspeed", "zero2"]
    assert main(words) == 0
    rows = {line.split("=")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["train.max_steps"].endswith("command line: --max_steps 5")
    assert rows["train.learning_rate"].endswith("command line: train.learning_rate=3e-4")
    assert rows["deepspeed.config"].endswith("command line: --deepspeed zero2")
    assert rows["train.weight_decay"].split() == ["train.weight_decay=0.1", "default"]


def test_what_show_prints_can_be_typed_again(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "show", "--max_steps", "5"])
    first = capsys.readouterr().out
    main(["config", "show", *first.splitlines()])
    assert capsys.readouterr().out == first


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "--config", "demo"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["model.preset"]["value"], table["model.preset"]["layer"]) == ("tiny", "preset")


@pytest.mark.parametrize(
    "words",
    [["config"], ["config", "--max_steps", "5", "show"], ["config", "show", "--max_stps", "5"]],
)
def test_wrong_words_are_refused_with_a_fix(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "fix:" in capsys.readouterr().err


def test_presets_with_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json"]) == 0
    presets = json.loads(capsys.readouterr().out)
    assert presets["models"]["120m"]["parameters"] == 123_426_304
    assert presets["runs"]["wiki-zh-120m"]["parameters"] == 123_426_304
    assert presets["models"]["72b"]["parameters"] == 72_706_203_648
    assert "about" in presets["data"]["wiki-zh"]
    assert main(["presets"]) == 0
    assert "123,426,304" in capsys.readouterr().out


def test_help_lists_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--help"]) == 0
    assert "train.learning_rate=0.0005" in capsys.readouterr().out
    assert main(["config", "--help-all"]) == 0
    assert "train.adam_epsilon=1e-08" in capsys.readouterr().out
