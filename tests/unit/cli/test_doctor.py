"""`wikillm doctor` as a command, and what `wikillm train` asks of it at its start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.tiny_run import Words

from wikillm.cli.main import main
from wikillm.core.errors import MachineError
from wikillm.core.world import World


def test_the_list_names_every_check_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 43 and all(row["about"] and row["group"] and row["name"] for row in rows)
    assert main(["doctor", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_the_checks_of_this_machine_decide_the_exit_code(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["doctor", "--deepspeed", "zero2", *words(tmp_path / "run")]
    code = main([*line, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == (3 if said["failed"] else 0)
    assert said["failed"] == any(check["level"] == "fail" for check in said["checks"])
    assert sum(said["counts"].values()) == len(said["checks"]) >= 30
    assert {"data-source", "batch", "checkpoint-room", "toolchain"} <= {
        c["name"] for c in said["checks"] if c["level"] == "ok"
    }
    main([*line, "--all"])
    shown = capsys.readouterr().out
    assert "python-version" in shown and f"{len(said['checks'])} checks in" in shown


def test_json_is_alone_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files left out of a folder of sources are reported on standard error."""
    (tmp_path / "corpus.txt").write_text("One document.\n")
    (tmp_path / "README").write_text("About it.\n")
    main(["doctor", "--json", "--config", "demo", f"data.path={tmp_path}"])
    out, err = capsys.readouterr()
    assert json.loads(out)["checks"] and "README" in err


def test_a_problem_is_expanded_and_the_code_is_3(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(tmp_path / "run", "train.global_batch_tokens=128")
    assert main(["doctor", "--gpus", "3", *line]) == 3
    shown = capsys.readouterr().out
    assert "  fail  batch" in shown and "cannot be split over 3 ranks" in shown


@pytest.mark.parametrize(
    "line",
    [
        ["--hostfile", "/nonexistent/hosts"],
        ["--gpus", "0"],
        ["--master-port", "0"],
        ["--master-addr", "-oProxyCommand=x"],
        ["--workdir", "/srv"],
        ["train.learing_rate=1"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *line]) == 2
    assert "ConfigError" in capsys.readouterr().err


def refused(line: list[str], world: World) -> str:
    from wikillm.cli.train import check_machine
    from wikillm.config.load import load

    try:
        check_machine(load(None, line, None), world)
    except MachineError as error:
        return str(error)
    return ""


def test_training_asks_only_what_would_end_it(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(tmp_path / "run")
    assert refused(line, World(0, 2, 0, 2)) == ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert "GLOO_SOCKET_IFNAME=nosuch0" in refused(line, World(0, 2, 0, 2))
    assert refused(line, World(1, 2, 1, 2)) == "", "one process of a node asks"
    assert refused(line, World()) == "", "a single process has no peers"


def test_a_disk_that_holds_no_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    line = ["model.preset=0.5b", "data.tokenizer=qwen2", f"run.dir={tmp_path / 'run'}"]
    assert "a single checkpoint needs" in refused(line, World())
    assert refused(["model.preset=tiny", f"run.dir={tmp_path / 'run'}"], World()) == ""


def test_training_refuses_before_anything_is_made(
    words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word in ["RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=2"]:
        monkeypatch.setenv(*word.split("="))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert main(["train", *words(tmp_path / "run")]) == 3
    assert "MASTER_ADDR and MASTER_PORT not set" in capsys.readouterr().err
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert main(["train", *words(tmp_path / "run")]) == 3
    assert "card-named" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
