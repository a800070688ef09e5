"""`make gpu`: the steps fit the card, results survive failures, and the page says what they say."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import run_ranks

GIB = 2**30


@pytest.fixture
def gpu(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(repo), *sys.path])  # which the script changes on import
    return importlib.import_module("benchmarks.gpu")


def step(gpu: Any, code: str, **more: Any) -> Any:
    """A step that runs Python code and leaves {"ran": true}."""
    words = [sys.executable, "-c", code]
    default = {"limit": 60, "least": 1, "command": lambda _: words}
    return gpu.Step("machine", "", **(default | more), result=lambda _: {"ran": True})


def run(gpu: Any, one: Any, out: Path, budget: float = 60) -> dict[str, Any]:
    setting = gpu.Setting(out, out, "", "", 80 * GIB)
    identity = {"sources": "abc", "commit": "def", "device": "card"}
    gpu.run_step(one, setting, gpu.Budget(budget), identity)
    return dict(json.loads((out / "machine.json").read_text()))


def test_shapes_follow_the_memory_of_the_card(gpu: Any) -> None:
    """The goal's shapes on 80 GB, smaller ones on 24 GB, none where not one sequence fits."""

    def shapes(memory: int) -> dict[str, str | None]:
        setting = gpu.Setting(Path("/o"), Path("/s"), "text", "tokenizer", memory)
        found = {one.name: one.command(setting) for one in gpu.steps()}
        trained = {name: words for name, words in found.items() if name.startswith("train_")}
        return {n: words and words[words.index("--shapes") + 1] for n, words in trained.items()}

    large = shapes(79 * GIB)
    assert large["train_120m"] == "120m-512-32" and large["train_3b"] == "3b-4096-2"
    small = shapes(23 * GIB)
    assert small["train_120m"] == "120m-512-8" and small["train_3b"] is None
    assert shapes(8 * GIB)["train_120m"] == "120m-512-2" and shapes(8 * GIB)["train_0.5b"] is None


def test_a_card_is_pretended_by_its_name_or_its_memory(gpu: Any) -> None:
    assert gpu.pretended("rtx4090") == ("rtx4090", int(23.5 * GIB))
    assert gpu.pretended("7.5GiB")[1] == int(7.5 * GIB)


def test_a_failure_is_recorded_and_never_replaces_a_good_result(gpu: Any, tmp_path: Path) -> None:
    failed = run(gpu, step(gpu, "raise ValueError('broken kernel')"), tmp_path)
    assert failed["status"] == "failed" and "broken kernel" in failed["reason"]
    assert run(gpu, step(gpu, "print('fine')"), tmp_path)["status"] == "done"
    again = run(gpu, step(gpu, "raise SystemExit(3)"), tmp_path)
    assert again["status"] == "done" and again["result"] == {"ran": True}
    assert json.loads((tmp_path / "machine.later.json").read_text())["code"] == 3


def test_results_name_no_folder_of_this_machine(gpu: Any, tmp_path: Path) -> None:
    """The page is part of the repository."""
    text = tmp_path / "data/zh.jsonl"
    setting = gpu.Setting(tmp_path / "out", tmp_path / "out/scratch", str(text), "train:9", GIB)
    said = f"prepare data.path={text} data.store={setting.scratch}/store --out {setting.out}/a.json"
    found = gpu.without_folders(f"{said} {gpu.REPO}/train.py", setting)
    assert found == (
        "prepare data.path=zh.jsonl data.store=SCRATCH/store --out OUT/a.json ./train.py"
    )
    failed = run(gpu, step(gpu, f"raise ValueError({str(tmp_path)!r})"), tmp_path)
    assert str(tmp_path) not in json.dumps(failed)


def test_ranks_on_a_gpu_are_no_forks_of_a_process_that_looked_for_one() -> None:
    """DeepSpeed's import does: after it, CUDA cannot start in a fork, and tests/gpu would fail."""
    assert run_ranks(os.getppid, 1, DS_ACCELERATOR="cuda") == [os.getpid()]


def test_a_step_ends_at_its_limit_with_its_children(gpu: Any, tmp_path: Path) -> None:
    """What it wrote so far is kept. A child in a session of its own ends too."""
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
    code += "'import time; time.sleep(60)'], start_new_session=True); print(p.pid, flush=True); "
    found = run(gpu, step(gpu, code + "time.sleep(60)", limit=2), tmp_path)
    assert found["status"] == "stopped" and found["code"] is None
    assert found["result"] == {"ran": True}
    child = int((tmp_path / "machine.log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_step_that_the_budget_cannot_hold_is_not_begun(gpu: Any, tmp_path: Path) -> None:
    found = run(gpu, step(gpu, "", least=30), tmp_path, budget=20)
    assert found["status"] == "not begun" and "s were left" in found["reason"]


def test_a_second_call_knows_what_it_has(gpu: Any, tmp_path: Path) -> None:
    """By sources and device; what failed comes after what was never begun."""
    steps = gpu.steps()[:3]
    identity = {"sources": "a", "device": "d"}
    for one, status in zip(steps, ("done", "failed", "done"), strict=True):
        record = {"status": status, "date": "today", **identity}
        (tmp_path / f"{one.name}.json").write_text(json.dumps(record))
    chosen = gpu.steps()[:4]

    def order(identity: dict[str, str], *again: str) -> list[str]:
        return [one.name for one in gpu.in_order(chosen, tmp_path, identity, list(again))]

    assert order(identity) == ["train_120m", "store"]
    assert order(identity, "mission") == ["mission", "train_120m", "store"]
    assert order({"sources": "b", "device": "d"}) == [one.name for one in chosen]


def test_contenders_keep_the_import_path_of_the_caller(
    gpu: Any, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment of wheels in a folder stays visible in the processes of the benchmarks."""
    (tmp_path / "carried_package.py").write_text("here = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environ = os.environ | {"PYTHONPATH": gpu.import_path()}
    code = "import carried_package, wikillm; print(wikillm.__file__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(str(repo)), done.stderr
    source = (repo / "benchmarks/contender_process.py").read_text()
    assert '"PYTHONPATH": import_path()' in source


def test_the_page_has_planned_beside_measured(gpu: Any) -> None:
    """An H100 that needs a tenth more memory than planned, at half the planned speed."""
    from benchmarks.gpu_report import page
    from benchmarks.gpu_steps import Shape
    from wikillm.plan.memory import memory_per_rank

    planned = memory_per_rank(*Shape("120m", 512, 32).planned()).allocated
    contender = {"wall": [0.1, 0.1], "cpu": [0.1, 0.1], "losses": [12.0], "peak": planned * 1.1}
    shape = {"wikillm": contender, "hf": {"error": "CUDA out of memory"}}
    result = {"shapes": {"120m, 32 x 512": shape}, "gemm_flops": 8e14, "peak_flops": 989.5e12}
    record = {"status": "done", "sources": "s", "commit": "c", "date": "2026-01-01", "seconds": 3}
    record |= {"device": "NVIDIA H100 80GB HBM3", "command": "python x", "result": result}
    text = page({"train_120m": record})
    assert "-9%" in text and "163,840" in text and "out of memory" in text
    assert "`python x`" in text


def test_every_command_is_one_that_parses(gpu: Any, tmp_path: Path) -> None:
    """The words of each step are accepted by the program that they start."""
    setting = gpu.Setting(tmp_path, tmp_path, "text.jsonl", "train:300", 79 * GIB)
    train = importlib.import_module("benchmarks.train")
    from wikillm.config.load import load

    for one in gpu.steps():
        words = shlex.split(shlex.join(one.command(setting)))
        if "benchmarks/train.py" in words:
            name = words[words.index("--shapes") + 1]
            assert train.shape_named(name).batch > 0
            known = set(train.CONTENDERS)
            asked = words[words.index("--contenders") + 1 :]
            assert set(asked[: asked.index("--out")]) <= known
        elif "train.py" in words:
            pairs = [word for word in words[words.index("train.py") :] if "=" in word]
            config = load(None, [*pairs, "train.max_steps=60"]).config
            assert config.train.global_batch_tokens == 131_072


def test_a_failed_visit_leaves_the_good_one(gpu: Any) -> None:
    train = importlib.import_module("benchmarks.train")
    good = {"wall": [1.0], "cpu": [1.0], "losses": [5.0], "peak": 7}
    failed = train.joined(good, {"error": "CUDA out of memory"})
    assert failed == good | {"later_error": "CUDA out of memory"}
    assert train.joined(good, good)["wall"] == [1.0, 1.0]
    assert train.joined({}, {"error": "no"}) == {"error": "no"}


def test_a_loss_that_fails_in_its_timed_runs_costs_the_others_nothing(gpu: Any) -> None:
    losses = importlib.import_module("benchmarks.losses")
    calls = {"good": 0, "bad": 0}

    def good() -> None:
        calls["good"] += 1

    def bad() -> None:
        calls["bad"] += 1
        if calls["bad"] == 2:
            raise RuntimeError("CUDA out of memory. Tried 9 GiB")

    found: dict[str, dict[str, Any]] = {"good": {}, "bad": {}}
    args = losses.argparse.Namespace(repeats=3)
    times = losses.timed(found, {"good": good, "bad": bad}, args)
    assert set(times) == {"good"} and len(times["good"]["wall"]) == 3
    assert found["bad"]["error"] == "out of memory"
