"""The argument lists of `remote.ssh` with a real ssh and sshd, between network namespaces."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.netns import Cluster, cluster, missing

from wikillm.remote.ssh import ssh_argv

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
WORDS = ["two words", "$HOME", "a'b", '"', ";true", "中"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("nodes"), "node1", "node2", wrong_key=["node2"]) as made:
        yield made


def test_arguments_arrive_unchanged(nodes: Cluster, tmp_path: Path) -> None:
    command = shlex.join(["printf", "%s\\n", *WORDS])
    done = nodes.run("node2", ssh_argv("node1", f"{command}; hostname"), cwd=tmp_path)
    assert done.stdout.splitlines() == [*WORDS, "node1"], done.stderr


def test_a_refused_key_ends_at_once_and_asks_nothing(nodes: Cluster, tmp_path: Path) -> None:
    done = nodes.run("node1", ssh_argv("node2", "true"), cwd=tmp_path, timeout=60)
    assert done.returncode == 255
    assert "node2: Permission denied (publickey)" in done.stderr
