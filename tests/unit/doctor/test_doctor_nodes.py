"""Comparison of several nodes, time limits, and the needs of a run. ssh: tests/dist."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from wikillm.config.load import load
from wikillm.core.memory import cgroup_memory
from wikillm.doctor import software
from wikillm.doctor.checks import GROUPS, Check, ok
from wikillm.doctor.disk import quick_digest
from wikillm.doctor.examine import NODE_CHECKS, check_node
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import card_addresses
from wikillm.doctor.node import NodeServer
from wikillm.doctor.nodes import REACH, Cluster
from wikillm.doctor.run_needs import needs_of
from wikillm.doctor.ssh_session import CLUSTER_CHECKS, node_command, why_no_value
from wikillm.supervise.node_versions import code_digest

CHECKS = {check.name: check for check in (*NODE_CHECKS, *CLUSTER_CHECKS)}


def needs(*words: str, **fields: Any) -> Needs:
    has_data = any(word.startswith("data.") for word in words)
    resolved = load("demo", [*([] if has_data else ["data.path=corpus.jsonl"]), *words], None)
    return replace(needs_of(resolved, nodes=1, slots=1), **fields)


def sound(**second: str) -> Cluster:
    """What gpu1 and gpu2 sent; some values of gpu2 differ."""
    one = {"code": "0123", "user": "ada", "sources": "1 files, aa", "gpus": "H100", "mtu": "9000",
           "machine": "boot1", "master": "10.0.0.1", "address": "10.0.0.1",
           "version of Python": "3.12.4", "version of torch": "2.13.0"}  # fmt: skip
    two = one | {"machine": "boot2", "address": "10.0.0.2"} | second
    return Cluster(
        slots={"gpu1": 2, "gpu2": 2},
        values={"gpu1": one, "gpu2": two},
        shared={"gpu1": [], "gpu2": []},
        connections={("gpu1", "gpu2"): "", ("gpu2", "gpu1"): ""},
        all_reduce=2e9,
    )


BLOCKED = {("gpu2", "gpu1"): "port 29500: no answer"}
FAULTS: list[tuple[str, str, str, dict[str, str], dict[str, Any]]] = [
    ("versions-equal", "fail", "torch 2.13.0: gpu1; 2.12.0: gpu2",
     {"version of torch": "2.12.0"}, {}),
    ("versions-equal", "fail", "Python 3.12.4: gpu1; 3.11.9: gpu2",
     {"version of Python": "3.11.9"}, {}),
    ("code-equal", "fail", "ffff: gpu2", {"code": "ffff"}, {}),
    ("data-equal", "fail", "1 files, bb: gpu2", {"sources": "1 files, bb"}, {}),
    ("user-equal", "warn", "eve: gpu2", {"user": "eve"}, {}),
    ("gpus-equal", "fail", "no GPU: gpu2", {"gpus": "no GPU"}, {}),
    ("mtu-equal", "fail", "1500: gpu2", {"mtu": "1500"}, {}),
    ("master-equal", "fail", "10.9.9.9: gpu2", {"master": "10.9.9.9"}, {}),
    ("distinct-machines", "fail", "gpu1 and gpu2 are one", {"machine": "boot1"}, {}),
    ("slots-equal", "fail", "gpu2 slots=8", {}, {"slots": {"gpu1": 2, "gpu2": 8}}),
    ("shared-folder", "fail", "gpu2 does not see", {}, {"shared": {"gpu1": [], "gpu2": ["gpu1"]}}),
    ("shared-folder", "fail", "gpu2: denied", {}, {"shared": {"gpu1": [], "gpu2": "denied"}}),
    ("connections", "fail", "gpu2 -> gpu1: port 29500", {}, {"connections": BLOCKED}),
    ("all-reduce", "warn", "47.7 MiB/s over 2 nodes", {}, {"all_reduce": 5e7}),
    ("all-reduce", "fail", "gpu2: timed out", {}, {"all_reduce": "gpu2: timed out"}),
    ("all-reduce", "skip", "do not reach", {}, {"all_reduce": "not measured: do not reach"}),
]  # fmt: skip


def test_every_check_between_nodes_has_a_fault_here() -> None:
    assert {fault[0] for fault in FAULTS} == {check.name for check in CLUSTER_CHECKS}
    assert {check(sound()).level for check in CLUSTER_CHECKS} == {"ok"}
    for check in CHECKS.values():
        assert check.group in GROUPS and check.about.endswith("."), check.name


@pytest.mark.parametrize(("name", "level", "words", "second", "both"), FAULTS)
def test_a_fault_names_the_node(
    name: str, level: str, words: str, second: dict[str, str], both: dict[str, Any]
) -> None:
    found = CHECKS[name](replace(sound(**second), **both))
    assert (found.level, words in found.found) == (level, True), found
    assert found.why or level == "skip"


def test_addresses_are_those_that_other_nodes_use() -> None:
    """The master may resolve its own name to 127.0.1.1: then the others' answer counts."""
    cluster = sound()
    one = {name: value for name, value in cluster.values["gpu1"].items()
           if name not in ("master", "address")}  # fmt: skip
    wrong = replace(cluster, values={**cluster.values, "gpu1": one})
    expected = {"gpu1": "10.0.0.1", "gpu2": "10.0.0.2"}
    assert cluster.addresses() == wrong.addresses() == expected


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("ssh: Could not resolve hostname gpu9: Name or service not known", "ssh gpu9"),
        ("ada@gpu9: Permission denied (publickey,password).", "ssh-copy-id gpu9"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "if it was reinstalled: ssh-keygen -R gpu9",
        ),
        ("bash: line 1: cd: /srv/wikillm: No such file or directory", "--workdir FOLDER"),
        ("/usr/bin/python: No module named wikillm", "on gpu9: make env"),
        ("bash: line 1: exec: python: not found", "on gpu9: make env"),
        ("Traceback (most recent call last):\n  ...\nKeyError: 'x'", "check out one commit"),
        ("", "ssh gpu9"),
    ],
)
def test_an_unreachable_node_is_one_failure_with_a_fix(text: str, fix: str) -> None:
    found = REACH(why_no_value({"text": text}, "gpu9"), "gpu9")
    assert (found.level, found.name, found.node) == ("fail", "reach", "gpu9")
    assert found.fix.startswith(fix) and found.found == (
        text.splitlines()[-1] if text else "ssh ended without a message"
    )


def test_a_working_folder_is_quoted() -> None:
    assert node_command("/srv/a b; rm -rf x", "n").startswith("cd '/srv/a b; rm -rf x' && ")


def test_a_check_that_hangs_is_one_failure_and_a_broken_one_a_warning() -> None:
    never = threading.Event()

    def hangs(subject: object) -> Any:
        return ok(str(never.wait()))

    def breaks(subject: object) -> Any:
        raise RuntimeError("no such thing")

    checks = [
        Check("first", "disk", "", lambda subject: ok("1")),
        Check("mount", "disk", "", hangs),
        Check("room", "disk", "", lambda subject: ok("2")),
        Check("odd", "host", "", breaks),
    ]
    found = {each.name: each for each in check_node(needs(), "here", checks, seconds=0.5)}
    never.set()
    levels = {name: each.level for name, each in found.items()}
    assert levels == {"first": "ok", "mount": "fail", "room": "skip", "odd": "warn"}
    assert found["mount"].found == "no answer within 0 s"
    assert found["odd"].found == "RuntimeError: no such thing"


def test_a_node_writes_listens_meets_and_cleans_up(tmp_path: Path) -> None:
    """Two nodes in one process, with real files and real ports."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        asked = needs(nodes=2, run_dir=str(tmp_path / "runs/x"), master="localhost",
                      master_port=taken.getsockname()[1])  # fmt: skip
        one = NodeServer("one")
        one.needs, one.token = asked, "t"
        two = NodeServer("two")
        two.needs, two.token = asked, "t"
        assert one._listen(asked.master_port) == [], "the port is in use"
        ports = one._listen(0)
        assert one._write() == ""
        peers = {"one": ("127.0.0.1", ports), "two": ("127.0.0.1", [1])}
        assert two.meet(["one"], peers) == {"missing": [], "errors": {"one": ""}}
        if "::1" in card_addresses().get("lo", []):
            six = {"one": ("::1", ports)}
            assert two.meet([], six) == {"missing": [], "errors": {"one": ""}}
        error = {"two": "port 1 at 127.0.0.1: Connection refused"}
        assert one.meet([], peers) == {"missing": [], "errors": error}
    one.remove_file()
    assert list(tmp_path.iterdir()) == []
    blocked = NodeServer("three")
    blocked.needs, blocked.token = replace(asked, run_dir="/proc/1/x"), "t"
    assert blocked._write().startswith("/proc/1: ")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job", {"job/memory.max": "1000", "job/memory.current": "10"}, (1000, 10)),
        ("0::/job", {"job/memory.max": "max"}, (None, None)),
        # Inside a container the path of the host does not exist.
        ("0::/elsewhere", {"memory.max": "77", "memory.current": "7"}, (77, 7)),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "500", "memory/a/memory.usage_in_bytes": "5"},
            (500, 5),
        ),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, (None, None)),
        ("", {}, (None, None)),
    ],
)
def test_limits_of_the_control_group_count(
    tmp_path: Path, own: str, files: dict[str, str], expected: tuple[Any, Any]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cgroup_memory(tmp_path, own) == expected


def test_digests_tell_versions_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    code = tmp_path / "wikillm"
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


def test_sources_are_read_as_the_run_reads_them(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("One document.\n\nAnother one.\n")
    words = (f"data.path={tmp_path / 'notes.md'}", f"data.store={tmp_path / 'store'}")
    assert CHECKS["data-source"](needs(*words)).level == "fail"
    assert CHECKS["data-source"](needs(*words, "data.format=blocks")).found.startswith(
        "1 files, about"
    )
    (tmp_path / "file").touch()
    assert CHECKS["run-folder"](needs(*words, f"run.dir={tmp_path / 'file'}")).level == "fail"
    absent = needs(f"data.path={tmp_path / 'absent.jsonl'}")
    assert "does not exist" in CHECKS["data-source"](absent).found
    assert CHECKS["data-source"](needs("data.path=s3://bucket/a.jsonl")).level == "skip"


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
    asked = needs("data.tokenizer=auto", *line)
    assert (asked.data_path, asked.has_source) == (local, has_source)
    assert "://" not in asked.store_dir


@pytest.mark.parametrize(
    ("slots", "said"), [(8, ""), (6, "sequence_parallel_size=4 does not divide the 6 ranks")]
)
def test_a_batch_that_does_not_divide_over_shared_sequences_is_a_finding(
    slots: int, said: str
) -> None:
    found = needs_of(load("long-7b-128k", ["data.path=corpus.jsonl"]), nodes=1, slots=slots)
    assert found.batch_error.startswith(said) and bool(found.batch_error) is bool(said)


def test_python_must_be_a_supported_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHECKS["python-version"](needs()).level == "ok"
    monkeypatch.setattr(software, "SUPPORTED_PYTHON", SpecifierSet(">=3.99"))
    assert CHECKS["python-version"](needs()).level == "fail"


def test_variables_that_other_nodes_do_not_get_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_LOGS", "x")
    here = load("demo", ["data.path=corpus.jsonl"], None)
    found = CHECKS["forwarded"](needs_of(here, nodes=2, slots=1))
    assert (found.level, "TORCH_LOGS" in found.found) == ("warn", True)


def test_checkpoints_that_exist_count(tmp_path: Path) -> None:
    """Superfluous checkpoints are removed first, so a new one needs no additional space."""
    run = tmp_path / "run"
    sparse = run / "checkpoints/checkpoint-4/model.safetensors"
    sparse.parent.mkdir(parents=True)
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    asked = needs(f"run.dir={run}", checkpoint=1 << 40, checkpoints_kept=2, least_checkpoint=1)
    assert "beside 1 TiB that stay" in CHECKS["checkpoint-room"](asked).found
    full = replace(asked, least_checkpoint=1 << 60, checkpoints_kept=4)
    found = CHECKS["checkpoint-room"](full)
    assert found.level == "fail" and "a single checkpoint needs" in found.why
    assert found.fix.startswith("train.save_total_limit=1")
