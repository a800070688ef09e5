"""The first example is trained. The others are planned and rendered without a GPU."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.corpus import write_corpus
from harness.tiny_model import tiny_model, write_tokenizer
from harness.tiny_run import run

from wikillm.cli.main import main

SHORT = ("train.max_steps=2", "train.logging_steps=1", "data.min_val_tokens=100", "data.workers=1")
GPU_RUNS = ("one-node-8-gpus", "two-nodes-slurm", "continue-qwen2.5-0.5b", "mixture")


@pytest.fixture(scope="module")
def folder(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/ next to the data and the model folder that the examples use."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(repo / "examples", root / "examples")
    shutil.copytree(repo / "ds_configs", root / "ds_configs")
    corpus = write_corpus(root / "corpus.jsonl")
    for name in ("corpus", "web", "books"):
        (root / name).mkdir()
    shutil.copy(corpus, root / "corpus" / "a.jsonl")
    shutil.copy(corpus, root / "web" / "a.jsonl")
    shutil.copy(corpus, root / "zhwiki.jsonl")
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    (root / "books" / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    model = tiny_model()
    model.config.max_position_embeddings = 32768
    model.save_pretrained(root / "Qwen2.5-0.5B")
    write_tokenizer(root / "Qwen2.5-0.5B", texts)
    return root


@pytest.fixture
def wikillm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `wikillm WORDS` in the folder of the examples and return what it printed."""
    monkeypatch.chdir(folder)

    def command(*words: str) -> str:
        code = main(list(words))
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    return command


def commands(repo: Path) -> list[list[str]]:
    text = (repo / "examples" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


def test_every_example_is_described_and_every_command_names_one(repo: Path) -> None:
    files = {path.name for path in (repo / "examples").glob("*.yaml")}
    text = (repo / "examples" / "README.md").read_text(encoding="utf-8")
    assert files == set(re.findall(r"\]\((\S+\.yaml)\)", text))
    named = {
        word.removeprefix("examples/")
        for words in commands(repo)
        for word in words
        if word.endswith(".yaml")
    }
    assert named == files


def test_the_laptop_example_trains(
    folder: Path, wikillm: Callable[..., str], warm_proofs: None
) -> None:
    config = "examples/chinese-laptop.yaml"
    small = ("data.tokenizer=train:600", *SHORT)
    assert "kept" in wikillm("prepare", "--config", config, *small)
    words = ["train.max_eval_tokens=500", "run.dir=runs/chinese-laptop", *small]
    done = run(1, words, config=config)
    assert done["code"] == 0, done["message"]
    assert len(done["losses"]) == 2
    wikillm("export", "runs/chinese-laptop", "--to", "exports/chinese-laptop")
    assert (folder / "exports" / "chinese-laptop" / "config.json").exists()


@pytest.mark.parametrize("name", GPU_RUNS)
def test_a_gpu_example_is_planned_and_rendered(name: str, wikillm: Callable[..., str]) -> None:
    config = f"examples/{name}.yaml"
    target = ("slurm", "--nodes", "2") if "slurm" in name else ("multi",)
    assert "choice" in wikillm("plan", "--config", config, "--gpu", "h100", "--gpus", "8")
    rendered = wikillm("launch", *target, "--gpus", "8", "--print", "--config", config)
    assert f"--config {config}" in rendered


@pytest.mark.parametrize("name", ["continue-qwen2.5-0.5b", "mixture"])
def test_a_dry_run_reads_the_data(name: str, wikillm: Callable[..., str]) -> None:
    words = ["train", "--dry-run", "--config", f"examples/{name}.yaml", *SHORT]
    words += ["train.sequence_length=64", "train.global_batch_tokens=256"]
    if name == "mixture":
        words.append("data.tokenizer=train:600")
    assert "parameters" in wikillm(*words)
