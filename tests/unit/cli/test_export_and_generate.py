"""`wikillm export` and `wikillm generate` on a run directory, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from harness.hub_server import serve_hub
from harness.tiny_model import tiny_model, write_checkpoint, write_tokenizer

from wikillm.cli.main import main
from wikillm.core.errors import ExitCode
from wikillm.core.files import write_json
from wikillm.evals.results import write_results

pytestmark = pytest.mark.usefixtures("warm_proofs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints, the newer one damaged, and the records of a run."""
    run = tmp_path_factory.mktemp("runs") / "small"
    write_checkpoint(run, tiny_model(), step=7)
    newer = write_checkpoint(run, tiny_model(), step=9)
    (newer / "config.json").write_text("{}")
    write_tokenizer(run / "tokenizer", ["北京是中国的首都。", "The history of it."] * 20)
    (run / "config.resolved.yaml").write_text(
        "run: {name: small, seed: 42}\nmodel: {preset: tiny}\n"
        "train: {learning_rate: 0.001, save_steps: 5}\n"
        "deepspeed: {config: /somewhere/private/zero2.json}\n"
    )
    write_json(run / "plan.json", {"warmup_steps": 3, "max_steps": 111, "micro_batch": 6})
    split = {"documents": 90, "tokens": 12_345, "text_bytes": 54_321}
    write_json(
        run / "data.json",
        {
            "fingerprint": "f" * 64,
            "sources": [{"path": "/somewhere/private/wiki.jsonl", "sha256": "a" * 64}],
            "splits": {"train": split, "val": {**split, "documents": 10}},
            "tokenizer": {"name": "train:400", "length": 400},
        },
    )
    write_json(
        run / "environment.json", {"packages": {"torch": "2.13.0", "absent": None}, "git": "1a2b3c"}
    )
    steps = [{"step": s, "segment": 0, "loss": 9.0 - s / 10, "tokens": s * 1000} for s in (5, 7, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    evaluation = {"kind": "eval", "step": 7, "eval_loss": 8.25, "bits_per_byte": 3.5}
    (run / "events.jsonl").write_text(json.dumps(evaluation) + "\n")
    part = {"bits_per_byte": 2.5, "perplexity": 33.25, "tokens": 9, "text_bytes": 20}
    for step, text in ((7, part), (9, {**part, "perplexity": 44.5})):
        values = {"text": {**text, "documents": 1}}
        write_results(run / "evals" / f"{step}.json", {"step": step}, values)
    return run


def test_export_takes_the_newest_good_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("exports/small-7")
    command = ["export", str(run), "--dtype", "bf16", "--push", "hf:org/small"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(command) == ExitCode.CONFIG
    assert "No token" in capsys.readouterr().err
    assert not folder.exists(), "refused before anything is written"
    with serve_hub("hf_token") as server:
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        assert main(command) == 0
    assert server.files["org/small"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    captured = capsys.readouterr()
    assert "skipping checkpoint-9" in captured.err
    assert str(folder) in captured.out and f"{server.url}/org/small" in captured.out
    card = (folder / "README.md").read_text()
    assert (folder / "loss.svg").read_text().startswith("<svg")
    parts = "# small|step 7|wiki.jsonl|训练文档|12,345|training loss, nats per token|8.3|8.25"
    assert "train.per_device_train_batch_size | 6" in card, "what auto chose"
    parts += "|3.5|train.learning_rate|zero2.json|torch|1a2b3c|train:400|7,000|33.25|困惑度"
    for part in (*parts.split("|"), "train.warmup_steps | 3", "train.max_steps | 111"):
        assert part in card, f"{part!r} is not in the card:\n{card}"
    for part in ("/somewhere", "save_steps", "8.1", "44.5", "absent"):
        assert part not in card, f"{part!r} is in the card:\n{card}"


def test_dry_run_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "m"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_the_three_kinds_of_folder_give_the_same_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tensors"] > 10
    words = ["--prompt", "北京", "--prompt", "", "--device", "cpu", "--seed", "3", "--json"]
    words += ["--max-new-tokens", "10"]
    texts = []
    for folder in (tmp_path / "m", run, run / "checkpoints" / "checkpoint-7"):
        assert main(["generate", str(folder), *words]) == 0
        texts.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert texts[0] == texts[1] == texts[2]
    assert [answer["prompt"] for answer in texts[0]] == ["北京", ""]
    assert all(answer["text"] for answer in texts[0])


def test_text_is_printed_with_its_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(run), "--prompt", "北京"]
    words += ["--max-new-tokens", "5", "--temperature", "0"]
    assert main([*words, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"北京{text}")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--max-new-tokens", "500"], ExitCode.CONFIG, "64 positions"),
        (["--top-p", "1.5"], ExitCode.CONFIG, "'1.5' is not a number"),
        (["--device", "toaster"], ExitCode.CONFIG, "not a device"),
        (["--device", "cuda:99"], ExitCode.MACHINE, "no device cuda:99"),
    ],
)
def test_generate_refuses_wrong_arguments(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: ExitCode, message: str
) -> None:
    assert main(["generate", str(run / "checkpoints" / "checkpoint-7"), *words]) == code
    assert message in capsys.readouterr().err


def test_a_checkpoint_without_its_run_needs_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model())
    words = ["export", str(checkpoint), "--to", str(tmp_path / "m")]
    assert main(words) == ExitCode.CONFIG
    assert "fix: --tokenizer" in capsys.readouterr().err
    tokenizer = write_tokenizer(tmp_path / "elsewhere", ["一二三"] * 5)
    assert main([*words, "--tokenizer", str(tokenizer)]) == 0
    assert "checkpoint-7" in (tmp_path / "m" / "README.md").read_text()
