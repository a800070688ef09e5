"""Arbitrary YAML, arguments, JSON, manifests and messages are accepted or refused, not a crash."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.budget import fuzzed
from fuzz.reading import damaged
from wikillm.checkpoints.latest import find_complete
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest
from wikillm.config.deepspeed import DeepSpeedFile, parse_strictly
from wikillm.config.deepspeed_check import check_deepspeed
from wikillm.config.keys import all_keys
from wikillm.config.load import load
from wikillm.config.yaml_file import parse_yaml
from wikillm.core.errors import CheckpointError, ConfigError, DataError
from wikillm.data.inspect.verify import verify
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.data.store.store import Store
from wikillm.supervise.coordinator import Coordinator
from wikillm.supervise.membership import Limits, Membership
from wikillm.supervise.records import read_records
from wikillm.supervise.status import read_status
from wikillm.supervise.wire import SealedWire, parse

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(),
    st.sampled_from([10**30, -(10**400), 1e308, 0.0, -1.5, "auto", "", "x"]),
    st.text(max_size=8),
)  # fmt: skip
JSON = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
TOKENS = st.sampled_from(
    ["model:", "train:", "  ", "max_steps", ": ", "\n", "- ", "{", "}", "[", "]", ",", "'", '"',
     "#", "&a ", "*a", "!!python/object ", "|", ">", "---\n", "1e-4", "0x10", "1:30", "no", "null",
     ".inf", "~", "? ", "<<: ", "%TAG ", "\t", "\x00", "\ufeff", "中", "a" * 200]
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


YAML_LINES = st.builds(
    "{}{}: {}".format,
    st.sampled_from(["", "", "  ", "- "]),
    st.sampled_from(["model", "train", "max_steps", "data.path", "<<", "? x", "1"]),
    TOKENS,
)


@given(
    st.one_of(
        st.lists(TOKENS, max_size=30).map("".join), st.lists(YAML_LINES, max_size=6).map("\n".join)
    )
)
@fuzzed(225)
def test_yaml_of_any_kind(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except ConfigError as error:
        assert error.what


@given(st.lists(st.tuples(st.sampled_from(list(all_keys())), JSON), min_size=1, max_size=3))
@fuzzed(60)
def test_settings_of_any_value(pairs: list[tuple[str, Any]]) -> None:
    words = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in pairs
    ]
    try:
        load(None, words)
    except ConfigError as error:
        assert error.what


RECIPE = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"}, "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True},
                          "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": 5e7,
                          "overlap_comm": True},
    "activation_checkpointing": {"partition_activations": False},
    "wall_clock_breakdown": False, "steps_per_print": 100,
}  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one or two parts replaced, removed or added; seldom another value."""
    made = json.loads(json.dumps(value))
    if draw(st.integers(0, 19)) == 7:
        return draw(JSON)
    for _ in range(draw(st.integers(1, 2))):
        inner = made
        path = []
        while isinstance(inner, dict | list) and inner and (not path or draw(st.booleans())):
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            path.append((inner, draw(st.sampled_from(keys))))
            inner = inner[path[-1][1]]
        if not path:
            return draw(JSON)
        holder, key = path[-1]
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(JSON)
        else:
            holder[key] = draw(JSON)
    return made


@given(changed(RECIPE))
@fuzzed(125)
def test_deepspeed_of_any_shape(made: Any) -> None:
    try:
        text = json.dumps(made, indent=1)
        values = parse_strictly(text, Path("ds.json"))
        check_deepspeed(DeepSpeedFile(Path("ds.json"), values, text, "ds.json", False))
    except ConfigError as error:
        assert error.what


@given(st.data())
@fuzzed(150)
def test_damaged_deepspeed(data: st.DataObject) -> None:
    text = data.draw(damaged(json.dumps(RECIPE, indent=1).encode())).decode("utf-8", "replace")
    try:
        parse_strictly(text, Path("ds.json"))
    except ConfigError as error:
        assert error.what


@pytest.fixture(scope="session")
def store(folder: Path, corpus: Path) -> tuple[Path, Any]:
    from wikillm.cli.main import main

    made = folder / "store"
    words = ["data.tokenizer=train:400", "data.min_val_tokens=20", "data.val_fraction=0.1"]
    words += ["data.workers=1", "data.max_text_bytes=20000"]
    assert main(["prepare", f"data.path={corpus}", f"data.store={made}", *words]) == 0
    return made, json.loads((made / MANIFEST_NAME).read_text())


@given(st.data())
@fuzzed(100)
def test_manifests_of_stores(store: tuple[Path, Any], data: st.DataObject) -> None:
    made, manifest = store
    try:
        (made / MANIFEST_NAME).write_text(json.dumps(data.draw(changed(manifest))))
        verify(Store.open(made))
    except DataError as error:
        assert error.what
    finally:
        (made / MANIFEST_NAME).write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def checkpoint(folder: Path) -> tuple[Path, Any]:
    made = folder / "run" / "checkpoints" / "checkpoint-7"
    made.mkdir(parents=True)
    (made / "wikillm_state.json").write_text(json.dumps({"step": 7, "consumed_samples": 3}))
    (made / "trainer_state.json").write_text(json.dumps({"global_step": 7}))
    facts = {"step": 7, "world_size": 1, "sequence": 2, "ancestors": [{"sequence": 1, "step": 3}]}
    write_manifest(made, seal_files(made, files_to_list(made)), facts)
    return made, json.loads((made / "wikillm_manifest.json").read_text())


@given(st.data(), st.sampled_from(["structure", "bytes"]))
@fuzzed(150)
def test_manifests_of_checkpoints(
    checkpoint: tuple[Path, Any], data: st.DataObject, kind: str
) -> None:
    made, manifest = checkpoint
    content = (
        json.dumps(data.draw(changed(manifest))).encode()
        if kind == "structure"
        else data.draw(damaged(json.dumps(manifest).encode()))
    )
    (made / "wikillm_manifest.json").write_bytes(content)
    try:
        find_complete(made.parent.parent)
    except CheckpointError as error:
        assert error.what


RECORD = {
    "rank": 0, "local_rank": 0, "world_size": 2,
    "process": {"host": "h", "pid": 1, "started": 5, "boot": "b"}, "interface": "eth0",
    "phase": "step", "step": 7, "standing": 0.5, "interval": 5.0, "time": 1.0,
    "exit": {"code": 0, "reason": "x"},
}  # fmt: skip


@given(changed(RECORD), changed({"code": 3, "meaning": "machine", "reason": "r", "step": 1}))
@fuzzed(75)
def test_records_of_ranks(folder: Path, record: Any, ended: Any) -> None:
    run = folder / "records"
    (run / "ranks").mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text("{}")
    (run / "ranks" / "rank_0.json").write_text(json.dumps(record))
    (run / "exit.json").write_text(json.dumps(ended))
    for found in read_records(run):
        assert found.rank == 0 and found.age() >= 0
    json.dumps(read_status(run).to_json())


DEEP = [b"x", b"[" * 30_000, b'{"a":' * 5000]


@given(
    st.one_of(
        st.binary(max_size=100),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.sampled_from(DEEP),
    ).flatmap(damaged)
)
@fuzzed(200)
def test_lines_at_a_wire(line: bytes) -> None:
    found = parse(line)
    assert found is None or isinstance(found, dict)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = SealedWire(ours, b"s" * 32, "c", is_coordinator=True)
        theirs.sendall(line + b"\n")
        assert wire.receive() == [] and not wire.is_proven


HELLO = {"hello": 0, "host": "h", "address": "a", "facts": {"python": "3.11"}}
BEAT = {"beat": 0, "phase": "step", "step": 7, "standing": 0.5, "limit": 120.0, "median": 0.25}
MESSAGES = [HELLO, BEAT, {"bye": 3, "reason": "x"}, {"died": "x"}]


@given(
    st.lists(
        st.sampled_from(MESSAGES).flatmap(lambda value: st.one_of(st.just(value), changed(value))),
        max_size=4,
    )
)
@fuzzed(100)
def test_messages_of_a_peer_that_knows_the_secret(messages: list[Any]) -> None:
    """The coordinator accepts them or closes the connection. Its verdict is text in both cases."""
    ours, theirs = socket.socketpair()
    listener = socket.socket()
    membership = Membership(1, 1, Limits(60, 60, 60, 60), time.monotonic())
    with ours, theirs, listener:
        coordinator = Coordinator(listener, membership, b"s" * 32, "c", 1.0)
        at_coordinator = SealedWire(ours, b"s" * 32, "c", is_coordinator=True)
        coordinator._unproven[at_coordinator] = (time.monotonic(), "a")
        peer = SealedWire(theirs, b"s" * 32, "c", is_coordinator=False)
        coordinator._receive(at_coordinator)
        peer.receive()
        for message in [HELLO, *messages]:
            peer.send(message)
        coordinator._receive(at_coordinator)
        coordinator._check()
        for later in (0.0, 10.0, 1e6):
            verdict = membership.verdict(time.monotonic() + later)
            assert verdict is None or verdict.reason


def test_each_commit_sees_three_thousand_inputs() -> None:
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    counts = re.findall(r"^@fuzzed\((\d+)\)$", "\n".join(sources), re.MULTILINE)
    assert sum(map(int, counts)) >= 3000
