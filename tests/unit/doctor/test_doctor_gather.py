"""Facts match this machine, files of a made-up /sys, real sockets and locks. No network."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.loopback import Handler, serving

from wikillm.config.load import load
from wikillm.core.memory import cgroup_memory
from wikillm.doctor.disk import gather_disk, inspect_folder, quick_digest
from wikillm.doctor.environment import relevant_environment
from wikillm.doctor.needs import Request, request_of
from wikillm.doctor.network import infiniband_ports, resolve, route_to
from wikillm.doctor.node import NodeServer
from wikillm.doctor.probe import run_in_time
from wikillm.doctor.questions import gather
from wikillm.doctor.servers import gather_connectivity
from wikillm.supervise.facts import code_digest
from wikillm.supervise.network import why_port_is_taken


def request_in(folder: Path, *data: str) -> Request:
    return Request(str(folder / "runs/x"), str(folder / "stores"), data, "", 29500, {})


def test_this_machine(tmp_path: Path, corpus: Path) -> None:
    facts = gather(request_in(tmp_path, str(corpus)))
    assert facts.errors == {}
    assert facts.software.packages["torch"] and facts.software.ranges["torch"].startswith(">=")
    assert facts.host.cores >= 1 and facts.host.memory > 2**30
    assert any(
        card.name == "lo" and "127.0.0.1" in card.addresses and card.is_up
        for card in facts.network.cards
    )
    assert facts.disk.run.existing == str(tmp_path)
    assert list(facts.disk.data) == [str(corpus)] and facts.disk.data_bytes > corpus.stat().st_size
    assert list(tmp_path.iterdir()) == [], "the disk check left a file"


def test_a_section_that_hangs_or_breaks_does_not_block_the_others() -> None:
    never = threading.Event()

    def broken() -> None:
        raise RuntimeError("no such thing")

    found, errors = run_in_time(
        {"a": lambda: 1, "hangs": never.wait, "breaks": broken}, seconds=2.0
    )
    never.set()
    assert found["a"] == 1
    assert errors["breaks"] == "RuntimeError: no such thing"
    assert errors["hangs"].startswith("no answer")


def test_secrets_are_not_gathered() -> None:
    environ = {
        "HF_TOKEN": "canary-1234",
        "SWANLAB_API_KEY": "canary-5678",
        "HF_ENDPOINT": "http://me:canary-9@mirror:1",
    }
    said = relevant_environment({**environ, "NCCL_DEBUG": "canary-1234 x", "HOME": "/h"})
    assert "canary" not in str(said)
    assert said == {"NCCL_DEBUG": "*** x", "HF_ENDPOINT": "http://***@mirror:1"}


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job", {"job/memory.max": "1000", "job/memory.current": "10"}, (1000, 10)),
        ("0::/job", {"job/memory.max": "max"}, (None, None)),
        (
            "0::/elsewhere",
            {"memory.max": "77", "memory.current": "7"},
            (77, 7),
        ),  # inside a container
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "500", "memory/a/memory.usage_in_bytes": "5"},
            (500, 5),
        ),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, (None, None)),
        ("", {}, (None, None)),
    ],
)
def test_cgroup_limits(
    tmp_path: Path, own: str, files: dict[str, str], expected: tuple[Any, Any]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cgroup_memory(tmp_path, own) == expected


def test_infiniband_ports(tmp_path: Path) -> None:
    (tmp_path / "mlx5_0/ports/1").mkdir(parents=True)
    (tmp_path / "mlx5_0/ports/1/state").write_text("4: ACTIVE\n")
    assert infiniband_ports(tmp_path) == (("mlx5_0:1", "ACTIVE"),)
    assert infiniband_ports(tmp_path / "absent") == ()


def test_servers_answer_or_not() -> None:
    class Refuses(Handler):
        def do_HEAD(self) -> None:
            self.send(404)

    with serving(Refuses, SimpleNamespace()) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        said = gather_connectivity(
            {
                "there": server.url,
                "gone": f"http://127.0.0.1:{closed.getsockname()[1]}",
                "odd": "file:///etc/passwd",
            }
        )
    assert said == {"there": "", "gone": "Connection refused", "odd": "not a web address"}


def test_names_routes_and_ports() -> None:
    assert "127.0.0.1" in resolve("localhost")
    assert resolve("no such host") == ()
    assert route_to("127.0.0.1", ()) == ("?", "127.0.0.1")
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        assert "in use" in why_port_is_taken(server.getsockname()[1])
    assert why_port_is_taken(0) == ""


def test_digests_tell_versions_apart(tmp_path: Path) -> None:
    file, code = tmp_path / "a.jsonl", tmp_path / "wikillm"
    file.write_bytes(b"x" * (3 << 20))
    first = quick_digest(file)
    file.write_bytes(b"x" * (3 << 20) + b"y")
    assert quick_digest(file) != first
    code.mkdir()
    (code / "a.py").write_text("1")
    one = code_digest(code)
    (code / "notes.txt").write_text("no code")
    assert code_digest(code) == one
    (code / "a.py").write_text("2")
    assert code_digest(code) != one


def test_folders_and_missing_data(tmp_path: Path) -> None:
    place = inspect_folder(tmp_path / "a/b/c")
    assert (place.existing, place.is_writable) == (str(tmp_path), True)
    disk = gather_disk(request_in(tmp_path, str(tmp_path / "absent.jsonl")))
    assert "does not exist" in disk.data_error and disk.data == {}


@pytest.mark.parametrize(
    ("line", "local", "has_source"),
    [
        ([], (), True),  # the default: Chinese Wikipedia is looked for
        (["data.path=a.jsonl"], ("a.jsonl",), True),
        (["data.path=s3://bucket/a.jsonl"], (), False),
        (["data.mixture=x:1:a.jsonl,y:1:https://h/b.jsonl"], ("a.jsonl",), True),
        (["data.store=https://h/store"], (), False),
    ],
)
def test_addresses_are_not_mistaken_for_paths(
    line: list[str], local: tuple[str, ...], has_source: bool
) -> None:
    asked = request_of(load("demo", ["data.path=null", *line], None), master="", master_port=29500)
    assert (asked.data_path, asked.has_source) == (local, has_source)
    assert "://" not in asked.store_dir


def test_a_node_writes_looks_and_cleans_up(tmp_path: Path) -> None:
    node = NodeServer()
    folder = str(tmp_path / "runs/x")
    node.answer("write", {"folder": folder, "file": ".a", "text": "1"})
    assert node.answer("look", {"folder": folder, "names": {".a": "1"}}) == []
    node.answer("clean", {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):
        node.answer("run", {"command": "ls"})


def test_nodes_connect_and_notice_a_stranger() -> None:
    one, two = NodeServer(), NodeServer()
    (port,) = one.answer("listen", {"ports": [0], "token": "one"})
    assert two.answer("listen", {"ports": [port], "token": "two"}) == [0]
    targets = [("one", "127.0.0.1", port, "one"), ("other", "127.0.0.1", port, "two")]
    said = two.answer("connect", {"targets": targets})
    one.answer("clean", {})
    assert said["one"] == "" and "another program" in said["other"]
    assert "refused" in two.answer("connect", {"targets": targets[:1]})["one"]
