"""`wikillm completion`: the scripts parse and name every command and its flags."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from wikillm.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_parses_and_names_the_commands(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--gpu-memory" in script and "--trust-checkpoint" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        done = subprocess.run(
            [shell, "-n", str(tmp_path / "script")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_bash_completes_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = "COMP_WORDS=(wikillm exp); COMP_CWORD=1; _shtab_wikillm; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"source ./script; {ask}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["export"], done.stderr


def test_another_shell_is_refused() -> None:
    assert main(["completion", "tcsh"]) == 2
