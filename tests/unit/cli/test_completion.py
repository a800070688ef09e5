"""`wikillm completion`: the scripts name every command and its flags."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wikillm.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_names_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--gpu-memory" in script and "--trust-checkpoint" in script


def test_bash_completes_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = "COMP_WORDS=(wikillm exp); COMP_CWORD=1; _shtab_wikillm; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"source ./script; {ask}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["export"], done.stderr
