"""`wikillm doctor --hostfile` on real nodes: network namespaces with an sshd each, real ssh, real gloo between them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.netns import SUBNET, Nodes, checkout, nodes, why_not
from harness.tiny_run import Words

if why_not() is not None:
    pytest.skip(f"multi-node tests not run: {why_not()}", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(2, tmp_path_factory.mktemp("nodes")) as made:
        yield made


def doctor(
    cluster: Nodes, repo: Path, folder: Path, hosts: str, words: list[str]
) -> tuple[int, dict[tuple[str, str], Any]]:
    """Exit code, and the verdicts by (check, node)."""
    workdir = checkout(repo, folder / "checkout")
    (folder / "hosts").write_text(hosts)
    argv = [sys.executable, "-m", "wikillm", "doctor", "--hostfile", str(folder / "hosts"), "--json"]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environ.pop("PYTHONPATH", None)
    done = cluster.run("node1", [*argv, *words], cwd=workdir, env=environ)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["seconds"] < 60
    assert not list(folder.rglob(".wikillm-doctor-*")), "files were left behind"
    return done.returncode, {(check["name"], check["node"]): check for check in said["checks"]}


def test_two_sound_nodes(cluster: Nodes, repo: Path, words: Words, tmp_path: Path) -> None:
    line = [*words(tmp_path / "run"), "--deepspeed", "zero2"]
    code, said = doctor(cluster, repo, tmp_path, "node1 slots=1\nnode2 slots=1\n", line)
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
    assert said["card", "node2"]["found"].startswith(f"eth0, {cluster.addresses['node2']}")
    assert said["hostname", "node2"]["level"] == "ok"


def test_each_fault_is_found_and_names_its_node(cluster: Nodes, repo: Path, words: Words, tmp_path: Path) -> None:
    """A name that is 127.0.1.1, another MTU, nobody at an address, another host key, no login: in one run."""
    config, known = cluster.folder / "ssh_config", cluster.folder / "known_hosts"
    aliases = f"Host gone\n  HostName {SUBNET}.99\n"
    aliases += f"Host stranger\n  HostName {cluster.addresses['node2']}\n  HostKeyAlias stranger\n"
    aliases += (
        f"Host closed\n  HostName {cluster.addresses['node2']}\n  HostKeyAlias node2\n  PubkeyAuthentication no\n"
    )
    config.write_text(aliases + config.read_text())
    node1_key = (cluster.folder / "node1.host.pub").read_text()
    with known.open("a") as file:
        file.write(f"stranger {node1_key}")
    one, two = cluster.addresses["node1"], cluster.addresses["node2"]
    cluster.set_hosts("node1", f"127.0.0.1 localhost\n127.0.1.1 node1\n{two} node2\n")
    cluster.set_hosts("node2", f"127.0.0.1 localhost\n127.0.1.1 node2\n{one} node1\n")
    cluster.link("node2", "mtu", "1300")
    hosts = "".join(f"{name} slots=1\n" for name in ("node1", "node2", "gone", "stranger", "closed"))
    code, said = doctor(cluster, repo, tmp_path, hosts, words(tmp_path / "run", "train.global_batch_tokens=640"))
    assert code == 3
    reached = {node: check for (name, node), check in said.items() if name == "reach"}
    assert [node for node, check in reached.items() if check["level"] == "ok"] == ["node1", "node2"]
    assert "No route to host" in reached["gone"]["found"] or "timed out" in reached["gone"]["found"]
    assert "ssh-keygen -R stranger" in reached["stranger"]["fix"]
    assert "ssh-copy-id closed" in reached["closed"]["fix"]
    assert said["hostname", "node2"]["level"] == "fail" and "node2 is 127.0.1.1" in said["hostname", "node2"]["found"]
    assert said["master-name", "node1"]["level"] == "fail"
    assert said["master-name", "node2"]["level"] == "ok"
    assert sorted(said["mtu-equal", ""]["found"].split("; ")) == ["1300: node2", "1500: node1"]
