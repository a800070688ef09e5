"""`wikillm doctor --hostfile` on network namespaces, with real sshd, ssh and gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from harness.netns import NET, Cluster, cluster, missing
from harness.tiny_run import Words

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def checkout(repo: Path, folder: Path) -> Path:
    """Create a working folder for all nodes, with links to this code and its environment."""
    folder.mkdir()
    for name in ("train.py", "wikillm", "ds_configs", "pyproject.toml"):
        (folder / name).symlink_to(repo / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def doctor(
    made: Cluster, repo: Path, folder: Path, hosts: str, words: list[str]
) -> tuple[int, dict[tuple[str, str], Any]]:
    """Run `wikillm doctor` on node1. Return its exit code and its verdicts by (check, node)."""
    workdir = checkout(repo, folder / "checkout")
    (folder / "hosts").write_text(hosts)
    argv = [
        sys.executable,
        "-m",
        "wikillm",
        "doctor",
        "--hostfile",
        str(folder / "hosts"),
        "--json",
        *words,
    ]
    ops = str(folder / "ops")  # separate from locks of other processes on this machine
    done = made.run(
        "node1", argv, cwd=workdir, HF_HUB_OFFLINE="1", PYTHONPATH="", TORCH_EXTENSIONS_DIR=ops
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert not list(folder.rglob(".wikillm-doctor-*")), "files were left behind"
    return done.returncode, {(check["name"], check["node"]): check for check in said["checks"]}


def test_two_sound_nodes_have_no_failure(repo: Path, words: Words, tmp_path: Path) -> None:
    line = [*words(tmp_path / "run"), "--deepspeed", "zero2"]
    # The run chooses gloo's card itself, so the second node's own name does not matter.
    own = {"node2": {"node2": "127.0.1.1"}}
    with cluster(tmp_path / "nodes", "node1", "node2", hosts=own) as made:
        code, said = doctor(made, repo, tmp_path, "node1 slots=1\nnode2 slots=1\n", line)
    failed = {key: check["found"] for key, check in said.items() if check["level"] == "fail"}
    assert (code, failed) == (0, {})
    for name in (
        "shared-folder",
        "connections",
        "all-reduce",
        "mtu-equal",
        "code-equal",
        "data-equal",
        "distinct-machines",
    ):
        assert said[name, ""]["level"] in ("ok", "warn"), said[name, ""]
    assert "/s over 2 nodes" in said["all-reduce", ""]["found"]
    assert said["connections", ""]["found"] == "2 directions"
    route = said["master-name", "node2"]["found"]
    assert route == f"node1 is {NET}.1, from {NET}.2 through eth0"


def test_each_fault_is_found_and_names_its_node(
    repo: Path, corpus: Path, words: Words, tmp_path: Path
) -> None:
    """One run finds all faults: 127.0.1.1, MTU, an unshared folder, a firewall, other software,
    code and data on one node, a dead host, wrong keys."""
    runs = tmp_path / "runs"
    nodes = tmp_path / "nodes"
    runs.mkdir()
    own = {name: {name: "127.0.1.1"} for name in ("node1", "node2")}
    hosts = "".join(
        f"{name} slots=1\n" for name in ("node1", "node2", "closed", "gone", "stranger")
    )
    with cluster(nodes, "node1", "node2", "closed", hosts=own, wrong_key=["closed"]) as made:
        config = nodes / "config"
        config.write_text(
            f"Host gone\n  HostName {NET}.99\n"
            f"Host stranger\n  HostName {NET}.2\n  HostKeyAlias stranger\n" + config.read_text()
        )
        with (nodes / "known_hosts").open("a") as file:
            file.write("stranger " + (nodes / "other_key.pub").read_text())
        on_two = ["ip", "-n", made.nodes["node2"].namespace]
        firewall = ["rule", "add", "ipproto", "tcp", "dport", "29500", "unreachable"]
        for fault in (["link", "set", "eth0", "mtu", "1300"], firewall):
            subprocess.run([*on_two, *fault], env=made.environ(), check=True)
        made.hide("node2", runs)
        # Other files are mounted at these paths on node2 only.
        metadata = Path(distribution("psutil").locate_file("x")).parent.glob("psutil-*/METADATA")
        for there, (old, new) in {
            next(metadata): ("\nVersion: ", "\nVersion: 9"),
            repo / "ds_configs/zero1.json": ("{", "{ "),
            corpus: ("\n", "\n\n"),
        }.items():
            other = tmp_path / f"other-{there.name}"
            other.write_text(there.read_text().replace(old, new, 1))
            subprocess.run(
                made.command("node2", "mount", "--bind", str(other), str(there)), check=True
            )
        code, said = doctor(
            made,
            repo,
            tmp_path,
            hosts,
            words(runs / "x", "train.global_batch_tokens=640", "train.supervise=off"),
        )
    assert code == 3
    reached = {node: check for (name, node), check in said.items() if name == "reach"}
    assert [node for node, check in reached.items() if check["level"] == "ok"] == ["node1", "node2"]
    assert "No route to host" in reached["gone"]["found"] or "timed out" in reached["gone"]["found"]
    assert "ssh-keygen -R stranger" in reached["stranger"]["fix"]
    assert "ssh-copy-id closed" in reached["closed"]["fix"]
    assert "node1 is 127.0.1.1" in said["master-name", "node1"]["found"]
    assert said["master-name", "node1"]["level"] == "fail"
    # Without supervision nothing chooses gloo's card: node2's own name does.
    assert said["master-name", "node2"]["found"] == "node2 is 127.0.1.1"
    assert sorted(said["mtu-equal", ""]["found"].split("; ")) == ["1300: node2", "1500: node1"]
    assert "does not see the files of" in said["shared-folder", ""]["found"]
    blocked = f"node2 -> node1: port 29500 at {NET}.1: Network is unreachable"
    assert said["connections", ""]["found"] == blocked
    assert said["all-reduce", ""]["level"] == "skip"
    assert said["versions-equal", ""]["found"].startswith("psutil ")
    for name in ("versions-equal", "code-equal", "data-equal"):
        found = said[name, ""]
        assert found["level"] == "fail" and ": node2" in found["found"], found
    assert ("packages", "node2") in {key for key, check in said.items() if check["level"] == "fail"}
