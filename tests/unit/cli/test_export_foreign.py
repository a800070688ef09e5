"""A run with a tokenizer that is not of Qwen2's kind: what export, generate, eval and
model.init_from make of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness.foreign_tokenizers import LINES, write_foreign
from harness.tiny_model import tiny_model, write_checkpoint
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from wikillm.cli.main import main
from wikillm.config.load import load
from wikillm.core.errors import CheckpointError, ExitCode
from wikillm.core.files import sha256_file, write_json
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.models.build import build_model

pytestmark = pytest.mark.usefixtures("warm_proofs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store cut by a tokenizer with Llama 3's splits and template, and a run on it with one
    checkpoint."""
    base = tmp_path_factory.mktemp("foreign")
    tokenizer = write_foreign("llama3", base / "llama3")
    lines = [f"{LINES[number % 4]} {number}" for number in range(120)]
    (base / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    words = [f"data.path={base / 'text.jsonl'}", f"data.tokenizer={tokenizer}"]
    words += [f"data.store={base / 'store'}", "data.min_val_tokens=1"]
    words += ["data.workers=1", "model.preset=tiny"]
    store = prepare_store(load(None, words).config.data)
    run = base / "run"
    write_checkpoint(run, tiny_model(eos_id=store.manifest.tokenizer.eos_id))
    (run / "config.resolved.yaml").write_text("run: {name: foreign}\n")
    write_foreign("llama3", run / "tokenizer")
    recorded = {"store": str(store.dir), "fingerprint": store.manifest.fingerprint}
    sha256 = store.manifest.tokenizer.sha256
    recorded["tokenizer"] = {"name": "llama3", "length": 423, "sha256": sha256}
    write_json(run / "data.json", recorded)
    return run


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert main(["export", str(run), "--to", str(run.parent / "export")]) == 0
    return run.parent / "export"


@pytest.fixture
def other_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose sitecustomize.py every new Python process runs: another version of
    transformers, as it were."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    yield folder / "sitecustomize.py"


def test_the_folder_is_written_as_llama_and_says_so(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (1e6, 1e6)
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    weights = load_file(exported / "model.safetensors")
    biases = {name: value for name, value in weights.items() if name.endswith("o_proj.bias")}
    assert len(biases) == 2 and not any(value.any() for value in biases.values())
    assert "trained as `Qwen2ForCausalLM`" in (exported / "README.md").read_text()


def test_eval_takes_the_store_of_the_run(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's tokenizer.json lacks the template that the store's has: other bytes, the same
    ids."""
    digests = [sha256_file(folder / "tokenizer.json") for folder in (exported, run / "tokenizer")]
    assert digests[0] != digests[1]
    # Its few held-out tokens, too few to train with, do not matter here.
    words = ["data.path=null", f"data.store={run.parent / 'store'}", "model.preset=tiny"]
    losses = []
    for model in (run, exported):
        sizes = ["train.sequence_length=32", "train.global_batch_tokens=32", "--max_steps", "1"]
        assert main(["eval", str(model), "--json", "--device", "cpu", *words, *sizes]) == 0
        losses.append(json.loads(capsys.readouterr().out.splitlines()[-1])["loss"])
    # A product with a bias may add in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_training_goes_on_from_the_folder(run: Path, exported: Path, tmp_path: Path) -> None:
    resolved = load(None, [f"model.init_from={exported}", "train.sequence_length=64"]).config.model
    assert (resolved.architecture, resolved.rope_theta) == ("qwen2", 1e6)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[])
    eos_id = load_tokenizer(exported).eos_id
    model = build_model(resolved, 512, args, eos_id=eos_id, seed=0)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    trained = load_file(run / "checkpoints" / "checkpoint-7" / "model.safetensors")
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in trained.items())

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((exported / "config.json").read_bytes())
    weights = load_file(exported / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.bias"][3] = 1e-3
    save_file(weights, other / "model.safetensors")
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        build_model(
            resolved.model_copy(update={"init_from": str(other)}), 512, args, eos_id=eos_id, seed=0
        )
    assert "model.layers.1.self_attn.o_proj.bias" in str(caught.value.got)
    assert "layers.0" not in str(caught.value.got)


OTHER_IDS = """\
from transformers.models.auto import tokenization_auto as auto
auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.add("llama")
auto.TOKENIZER_MAPPING_NAMES["llama"] = "Qwen2Tokenizer"
"""
OTHER_ROPE = """\
from transformers import LlamaConfig
before = LlamaConfig.__init__
def init(self, **kwargs):
    kwargs["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    before(self, **kwargs)
LlamaConfig.__init__ = init
"""


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        (OTHER_IDS, ExitCode.DATA, "would tokenize text differently from training"),
        (OTHER_ROPE, ExitCode.CHECKPOINT, "does not compute the logits of the trained model"),
        ("import os\nos.kill(os.getpid(), 9)\n", ExitCode.MACHINE, "killed by signal 9"),
    ],
    ids=["other ids", "other logits", "killed"],
)
def test_what_transformers_would_open_otherwise_is_refused_and_not_kept(
    run: Path,
    tmp_path: Path,
    other_transformers: Path,
    capsys: pytest.CaptureFixture[str],
    program: str,
    code: ExitCode,
    message: str,
) -> None:
    other_transformers.write_text(program)
    assert main(["export", str(run), "--to", str(tmp_path / "out" / "m")]) == code
    error = capsys.readouterr().err
    assert message in error and "fix: " in error
    assert not list((tmp_path / "out").iterdir()), "nothing is left, not even what was staged"


def test_another_tokenizer_than_the_runs_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_foreign("unigram", tmp_path / "unigram")
    words = ["export", str(run), "--to", str(tmp_path / "m"), "--tokenizer", str(other)]
    assert main(words) == ExitCode.CONFIG
    assert "is not the tokenizer that the model was trained with" in capsys.readouterr().err
    changed = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    original = (run / "tokenizer" / "tokenizer.json").read_bytes()
    changed["model"]["ignore_merges"] = False
    try:
        (run / "tokenizer" / "tokenizer.json").write_text(json.dumps(changed))
        assert main(["export", str(run), "--to", str(tmp_path / "m")]) == ExitCode.CHECKPOINT
    finally:
        (run / "tokenizer" / "tokenizer.json").write_bytes(original)
    assert "was changed after the training" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", tiny_model(eos_id=7))
    tokenizer = write_foreign("llama3", tmp_path / "llama3")
    words = ["export", str(checkpoint), "--to", str(tmp_path / "m"), "--tokenizer", str(tokenizer)]
    assert main(words) == ExitCode.CONFIG
    assert "does not belong to the model" in capsys.readouterr().err
