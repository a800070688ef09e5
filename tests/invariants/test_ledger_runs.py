"""What each step consumed is proven from files. Each injected fault is named with its step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.ledgers import assert_proven, replay, replay_and_stop, train_on_wrong_batches
from harness.programs import train_with_options
from harness.ranks import end_ranks, run_ranks
from harness.reference import References
from harness.tiny_run import run

from wikillm.cli.main import main
from wikillm.ledger.audit import Audit, audit_run
from wikillm.ledger.record import NAME, History, LedgerWriter, StepLine, read_ledger
from wikillm.train.step_ledger import TOGETHER

SHORT = ("train.max_steps=4", "train.save_steps=4", "train.eval_steps=4")


def digests(run_dir: Path) -> list[int]:
    return [line.digest for line in read_ledger(run_dir / NAME) if isinstance(line, StepLine)]


def first_wrong(run_dir: Path) -> tuple[int, str, str]:
    found = audit_run(run_dir)
    assert isinstance(found, Audit) and not found.is_proven
    return found.wrong[0].step, found.wrong[0].kind, found.wrong[0].text


def test_the_digests_do_not_depend_on_the_ranks(references: References) -> None:
    one = references(1, deepspeed="zero1")["folder"]
    two = references(2, deepspeed="zero2")["folder"]
    assert digests(one) == digests(two) and len(set(digests(one))) == 8
    for folder in (one, two):
        assert_proven(folder, 8)
    losses = [line.loss for line in History.of(read_ledger(one / NAME)).steps]
    assert losses == list(references(1, deepspeed="zero1")["losses"].values())


def test_a_killed_run_with_a_torn_line_is_proven_after_its_resume(
    words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = words(folder, "train.max_steps=12", "train.save_steps=12")
    codes = end_ranks(train_with_options, 1, command, {"kill_at": TOGETHER + 2})
    assert codes == [-9]
    assert audit_run(folder, last_step=TOGETHER).is_proven, "before the resume"
    with open(folder / NAME, "ab") as file:
        file.write(b'{"step":9,"first":64,"st')
    assert run(1, command, resume="auto")["code"] == 0
    assert_proven(folder, 12, segments=2, superseded=TOGETHER)

    capsys.readouterr()
    assert main(["audit", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "steps 1 to 12: samples 0 to 95 in their order, each once per epoch" in said
    assert main(["audit", str(folder), "--json", "--no-tokens", "--steps", "3:5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["first"], found["stop"], found["tokens_compared"]) == (16, 40, 0)

    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved / "run")
    shutil.copytree(Path(json.loads((folder / "data.json").read_text())["store"]), moved / "store")
    assert main(["audit", str(moved / "run"), "--store", str(moved / "store")]) == 0

    lines = (folder / NAME).read_bytes().splitlines(keepends=True)
    (moved / "run" / NAME).write_bytes(b"".join(lines[:3] + lines[4:5]))
    assert first_wrong(moved / "run")[:2] == (3, "record")
    (moved / "run" / NAME).unlink()
    assert main(["audit", str(moved / "run")]) == 6


@pytest.mark.parametrize(
    ("fault", "world", "step", "kind", "text"),
    [
        ("repeat", 1, 3, "repeated", "the tokens of samples 8 to 15, not those of"),
        ("lose", 1, 3, "lost", "the tokens of samples 24 to 31, not those of"),
        ("other_world", 2, 1, "tokens", "ranks read each other's samples"),
    ],
)
def test_a_wrong_batch_is_named(
    fault: str, world: int, step: int, kind: str, text: str, words: Any, tmp_path: Path
) -> None:
    command = words(tmp_path / "run", *SHORT)
    results = run_ranks(train_on_wrong_batches, world, command, fault, step)
    assert results[0]["code"] == 0, results[0]["message"]
    found = first_wrong(tmp_path / "run")
    assert found[:2] == (step, kind) and text in found[2]


def test_a_changed_position_is_named(references: References, tmp_path: Path) -> None:
    """Samples that no step consumed, or two did, and a checkpoint that says otherwise."""
    shutil.copytree(references(1, deepspeed="zero1")["folder"], tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "checkpoint-4" / "wikillm_state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"consumed_samples": 40}))
    assert first_wrong(tmp_path / "run")[:2] == (4, "checkpoint")

    for samples, kind, text in ((40, "lost", "32 to 39 were not"), (24, "repeated", "24 to 31")):
        shutil.copy(references(1, deepspeed="zero1")["folder"] / NAME, tmp_path / "run")
        writer = LedgerWriter(tmp_path / "run" / NAME)
        order = History.of(read_ledger(tmp_path / "run" / NAME)).segments[0].order
        facts = {"checkpoint": None, "world": 1, "order": order, "time": 0.0}
        writer.begin(step=4, samples=samples, **facts)
        writer.add(StepLine(5, samples, samples + 8, 0))
        writer.flush()
        path.write_text(json.dumps(state))
        step, found, said = first_wrong(tmp_path / "run")
        assert (step, found) == (5, kind) and text in said


def test_a_tampered_shard_is_refused_before_use_and_named_by_the_audit(
    words: Any, references: References, tmp_path: Path
) -> None:
    """A third of a shard is replaced by random ids of the vocabulary."""
    folder = references(1, deepspeed="zero1")["folder"]
    store = tmp_path / "store"
    shutil.copytree(json.loads((folder / "data.json").read_text())["store"], store)
    shard = store / "train" / "00000.tok"
    good = shard.read_bytes()
    ids = np.frombuffer(good, dtype="<u4").copy()
    ids[: len(ids) // 3] = np.random.default_rng(0).integers(0, 500, len(ids) // 3)
    shard.write_bytes(ids.tobytes())

    command = words(tmp_path / "run", *SHORT, f"data.store={store}")
    refused = run(1, command)
    assert refused["code"] == 4 and not refused["losses"]
    wanted = json.loads((store / "manifest.json").read_text())["shards"][0]["splits"]["train"]
    assert f"{shard}: its sha256 is" in refused["message"]
    assert f"the manifest has {wanted['tok_sha256']}" in refused["message"]
    with_workers = [*command, "train.dataloader_num_workers=1"]
    assert run(1, with_workers, resume="auto")["message"] == refused["message"]

    shutil.rmtree(tmp_path / "run")
    trained = run(1, [*command, "data.verify=off"])
    assert trained["code"] == 0, trained["message"]
    step, kind, text = first_wrong(tmp_path / "run")
    assert (step, kind) == (1, "tokens") and str(shard) in text
    shard.write_bytes(good)
    step, kind, text = first_wrong(tmp_path / "run")
    assert kind == "tokens" and "memory was damaged" in text


def test_a_step_that_follows_from_its_data_is_computed_again_bit_for_bit(
    references: References, tmp_path: Path
) -> None:
    folder = references(2, deepspeed="zero2")["folder"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found, other = run_ranks(replay, 2, str(folder), 6, str(tmp_path / "work"))
    assert found["verdict"] == "data" and found["is_exact"] and other is None
    assert found["checkpoint"] == "checkpoint-4" and found["line"][:3] == (6, 40, 48)
    (again,) = found["passes"]
    assert again == found["logged"] and again.loss == references(2, deepspeed="zero2")["losses"][6]
    assert again.grad_norm
    assert found["documents"] and not (tmp_path / "work").exists()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_replay_stops_on_request(references: References, tmp_path: Path) -> None:
    """SIGTERM in step 6 of a replay of step 8: the steps after it are not computed."""
    folder = references(1, deepspeed="zero1")["folder"]
    (said,) = run_ranks(replay_and_stop, 1, str(folder), 8, str(tmp_path / "work"), 5)
    assert said.startswith("Stopped by SIGTERM at step 6; a replay keeps no checkpoint."), said
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("what", [pytest.param("loss", marks=pytest.mark.deep), "grad_norm"])
def test_a_step_that_its_replay_does_not_reproduce_is_not_blamed_on_the_data(
    references: References, tmp_path: Path, what: str
) -> None:
    """What was logged of step 6 is what a machine had computed wrongly."""
    folder = tmp_path / "run"
    shutil.copytree(references(1, deepspeed="zero1")["folder"], folder)
    if what == "loss":
        entries = read_ledger(folder / NAME)
        (folder / NAME).unlink()
        writer = LedgerWriter(folder / NAME)
        for entry in entries:
            is_six = isinstance(entry, StepLine) and entry.step == 6
            writer.add(entry._replace(loss=entry.loss + 2e-6) if is_six else entry)
        writer.flush()
    else:
        metrics = folder / "metrics.jsonl"
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        for record in records:
            record[what] *= 1 + 1e-6 * (record["step"] == 6)
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = run_ranks(replay, 1, str(folder), 6, str(tmp_path / "work"))
    assert found["verdict"] == "hardware or nondeterminism" and found["same_tokens"]
    first, second = found["passes"]
    assert first == second != found["logged"]
