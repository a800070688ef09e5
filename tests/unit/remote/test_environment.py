"""Forwarded variables: on an allow-list, in a private file, exported unchanged by the shell."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wikillm.core.errors import ConfigError
from wikillm.remote.environment import (
    FILE_NAME,
    READ_IT,
    forwarded_variables,
    is_forwarded,
    write_environment_file,
)
from wikillm.remote.private_files import PRIVATE, in_any_case, is_private
from wikillm.remote.ssh import rsync_argv, ssh_argv

VALUES = {
    "SWANLAB_API_KEY": "a b'c\"d$HOME`ls`\\n;#",
    "HF_ENDPOINT": "https://mirror.example/hf?a=1&b=2",
    "NCCL_DEBUG": "",
}


def test_only_names_on_the_list_are_forwarded() -> None:
    environ = {
        **VALUES,
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "x",
        "PATH": "x",
        "LD_PRELOAD": "x",
        "NCCL_A B": "x",
    }
    assert forwarded_variables(environ) == dict(sorted(VALUES.items()))
    assert is_forwarded("https_proxy") and not is_forwarded("WIKILLM_X=y")


def test_a_value_with_a_line_break_is_refused_by_name_and_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        forwarded_variables({"SWANLAB_API_KEY": "canary\nLD_PRELOAD=x"})
    assert "SWANLAB_API_KEY" in str(refused.value) and "canary" not in str(refused.value)


def test_the_file_is_private_and_the_shell_reads_it_back(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text("old")
    path.chmod(0o644)
    write_environment_file(path, VALUES)
    assert path.stat().st_mode & 0o777 == 0o600
    show = f"import json, os; print(json.dumps({{n: os.environ[n] for n in {list(VALUES)!r}}}))"
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, "-euc", f'{READ_IT}; exec "$@"', "_", sys.executable, "-c", show],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == VALUES


def test_the_host_follows_a_double_dash() -> None:
    argv = ssh_argv("node1", "true")
    assert argv[-3:] == ("--", "node1", "true") and "BatchMode=yes" in argv
    assert not is_private("train.py") and is_private("id_rsa")
    copy = rsync_argv(".", "me@node1", "a folder", (".git",))
    assert copy[-3:] == ("--", "./", "me@node1:a folder/") and "-azs" in copy
    assert copy.index("id_*.py") < copy.index(in_any_case("id_*")), (
        "rsync takes the first rule that fits: code named id_x.py is copied"
    )
    excluded = {copy[i + 1] for i, word in enumerate(copy) if word == "--exclude"}
    assert excluded == {".git", *map(in_any_case, PRIVATE)}
    for name in ("id_rsa", "ID_DSA", "Server.PEM", ".Netrc", "x.netrc"):
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded), name
    assert not any(fnmatch.fnmatchcase("train.py", pattern) for pattern in excluded)
