"""From a checkpoint to a folder that plain transformers loads, with exactly the trained weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.tiny_model import seal, tiny_model, write_checkpoint, write_tokenizer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from wikillm.core.errors import CheckpointError, ConfigError, MachineError
from wikillm.core.files import sha256_file
from wikillm.export.card import CardContent, languages_of, render_card
from wikillm.export.folder import Exported, export_model
from wikillm.export.target_folder import MARK
from wikillm.export.weights import check_written, read_weights, weight_files, write_weights

CONTENT = CardContent(
    name="a-run",
    step=7,
    data={"documents": 106, "tokens": 884_000, "sources": ["a.jsonl", "b|c.jsonl"]},
    training={"train.learning_rate": 5e-4},
    metrics={"validation loss (nats per token)": 5.123456789},
    environment={"torch": "2.13.0"},
)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(
        tmp_path_factory.mktemp("tokenizer"), ["北京是中国的首都。", "The history of it."] * 20
    )


def exported(checkpoint: Path, target: Path, tokenizer: Path, dtype: str | None = None) -> Exported:
    """An export without the proof."""
    return export_model(
        checkpoint, target, tokenizer_dir=tokenizer, content=CONTENT, dtype=dtype, prove=False
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_are_the_trained_ones(
    tmp_path: Path, tokenizer_dir: Path, tied: bool, dtype: str | None
) -> None:
    model = tiny_model(tied=tied)
    checkpoint = write_checkpoint(tmp_path, model)
    done = exported(checkpoint, tmp_path / "out" / "m", tokenizer_dir, dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto")
    stored = torch.float32 if dtype is None else torch.bfloat16
    meant = {name: value.to(stored) for name, value in model.state_dict().items()}
    found = again.state_dict()
    assert set(found) == set(meant)
    assert all(
        found[name].dtype == stored and torch.equal(found[name], meant[name]) for name in meant
    )
    assert done.parameters == model.num_parameters()
    assert done.dtype == str(stored).removeprefix("torch.")


def test_logits_are_equal_without_wikillm(tmp_path: Path, tokenizer_dir: Path) -> None:
    """A process without wikillm loads the folder and computes equal logits."""
    model = tiny_model().eval()
    checkpoint = write_checkpoint(tmp_path, model)
    done = export_model(checkpoint, tmp_path / "m", tokenizer_dir=tokenizer_dir, content=CONTENT)
    assert done.proof is not None and done.proof.texts > 300
    folder = done.folder
    ids = AutoTokenizer.from_pretrained(tokenizer_dir).encode("北京是")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    program = f"""
import sys
sys.modules["wikillm"] = None  # any import of it raises ImportError
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
assert model.config.architectures == ["Qwen2ForCausalLM"], model.config
inputs = tokenizer("北京是", return_tensors="pt")
with torch.no_grad():
    torch.save(model(input_ids=inputs["input_ids"]).logits, {str(tmp_path / "logits.pt")!r})
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
    assert done.stdout.startswith("北京是")


def test_folder_is_standard_and_sealed(tmp_path: Path, tokenizer_dir: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model())
    folder = exported(checkpoint, tmp_path / "m", tokenizer_dir).folder
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json",
        "README.md", MARK,
    }  # fmt: skip
    generation = json.loads((folder / "generation_config.json").read_text())
    assert [generation[f"{name}_token_id"] for name in ("eos", "bos", "pad")] == [0, 0, 0]
    assert generation["max_new_tokens"] == 32  # of 64 positions
    assert "lm_head.weight" not in load_file(folder / "model.safetensors"), (
        "tied weights are stored once"
    )
    mark = json.loads((folder / MARK).read_text())
    assert (mark["run"], mark["step"]) == ("a-run", 7)
    assert set(mark["files"]) == names - {MARK}
    assert mark["tokenizer"] == sha256_file(folder / "tokenizer.json")
    assert all(
        entry["sha256"] == sha256_file(folder / name) for name, entry in mark["files"].items()
    )
    assert not list(tmp_path.glob(".m*")), "nothing staged is left"
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, (
        "who may read one file may read all"
    )


def test_earlier_export_is_replaced_but_nothing_else(tmp_path: Path, tokenizer_dir: Path) -> None:
    checkpoint, target = write_checkpoint(tmp_path, tiny_model()), tmp_path / "m"
    exported(checkpoint, target, tokenizer_dir)
    exported(checkpoint, target, tokenizer_dir, dtype="bf16")
    assert "bfloat16" in (target / "README.md").read_text()
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="other files") as caught:
        exported(checkpoint, target, tokenizer_dir)
    assert caught.value.got == "mine.txt"
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("")
    with pytest.raises(ConfigError, match="neither empty nor an earlier export"):
        exported(checkpoint, other, tokenizer_dir)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert exported(checkpoint, tmp_path / "empty", tokenizer_dir).tensors > 0
    with pytest.raises(ConfigError, match="not a folder"):
        exported(checkpoint, tmp_path / "file", tokenizer_dir)


def test_failure_leaves_nothing_and_keeps_the_earlier_export(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    checkpoint, target = write_checkpoint(tmp_path, tiny_model()), tmp_path / "m"
    exported(checkpoint, target, tokenizer_dir)
    before = sha256_file(target / MARK)
    weights = load_file(checkpoint / "model.safetensors")
    weights.pop("model.norm.weight")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-1].clone()
    weights["stranger"] = torch.zeros(1)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        exported(checkpoint, target, tokenizer_dir)
    for part in ("The weight model.norm.weight is missing", "does not fit", "stranger"):
        assert part in str(caught.value), "all problems at once"
    assert sha256_file(target / MARK) == before
    assert not list(tmp_path.glob(".m*"))


def test_a_fault_while_writing_leaves_nothing(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wikillm.export.folder.seal_files", disk_full)
    with pytest.raises(MachineError, match="could not be written.\n.*No space"):
        exported(write_checkpoint(tmp_path, tiny_model()), tmp_path / "m", tokenizer_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_tied_weights_are_stored_once_and_must_agree(tmp_path: Path, tokenizer_dir: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model())
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, checkpoint / "model.safetensors")
    done = exported(checkpoint, tmp_path / "m", tokenizer_dir)
    assert "lm_head.weight" not in load_file(done.folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="config.json ties them"):
        exported(checkpoint, tmp_path / "m", tokenizer_dir)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"\0" * 64), "damaged|cannot be read"),
        (lambda c: (c / "model.safetensors").unlink(), "has no weights"),
        (lambda c: (c / "config.json").unlink(), "no config.json"),
        (lambda c: (c / "config.json").write_text("{"), "cannot be read"),
    ],
    ids=["weights overwritten", "weights gone", "config gone", "config cut off"],
)
def test_damaged_checkpoints_are_named(
    tmp_path: Path, tokenizer_dir: Path, damage: object, message: str
) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model())
    damage(checkpoint)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        exported(checkpoint, tmp_path / "m", tokenizer_dir)


@pytest.mark.parametrize(
    ("value", "dtype", "error", "message"),
    [
        (float("nan"), None, CheckpointError, "norm.weight holds NaN or infinity"),
        (1e5, "float16", ConfigError, "norm.weight is too large for float16"),
    ],
)
def test_values_that_no_model_or_type_holds_are_refused(
    tmp_path: Path, tokenizer_dir: Path, value: float, dtype: str, error: type, message: str
) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[3] = value
    checkpoint = write_checkpoint(tmp_path, model)
    with pytest.raises(error, match=message):
        exported(checkpoint, tmp_path / "m", tokenizer_dir, dtype=dtype)
    assert not (tmp_path / "m").exists()


def test_partitions_are_not_unpickled_before_the_manifest_verifies(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    partition = checkpoint / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    partition.parent.mkdir(parents=True)
    partition.write_bytes(b"anything")
    seal(checkpoint, 3)
    partition.write_bytes(b"tampered")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights(checkpoint, verified=False)


def test_an_unknown_type_and_a_missing_tokenizer_are_refused(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model())
    with pytest.raises(ConfigError, match="cannot be stored as"):
        exported(checkpoint, tmp_path / "m", tokenizer_dir, dtype="int4")
    with pytest.raises(ConfigError, match="no tokenizer"):
        exported(checkpoint, tmp_path / "m", tmp_path)


def test_large_weights_are_split_into_shards_and_read_back(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.randn(100, 25) for i in range(7)}  # 10 kB each
    write_weights(weights, tmp_path, shard_bytes=25_000)
    assert len(weight_files(tmp_path)) == 4
    assert check_written(weights, tmp_path) == 7
    again = read_weights(tmp_path, verified=True)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_rereading_notices_one_changed_bit(tmp_path: Path) -> None:
    weights = {"a": torch.randn(4, 4), "nan": torch.full((2,), float("nan"))}
    write_weights(weights, tmp_path)
    assert check_written(weights, tmp_path) == 2
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="reads back differently"):
        check_written(weights, tmp_path)
    with pytest.raises(CheckpointError, match="Weights are missing in .*: more"):
        write_weights(weights, tmp_path)
        check_written({**weights, "more": torch.zeros(1)}, tmp_path)


def test_the_card_has_its_content_in_two_languages() -> None:
    config = Qwen2Config(vocab_size=512, architectures=["Qwen2ForCausalLM"], dtype=torch.bfloat16)

    def card(content: CardContent) -> str:
        return render_card(
            content, config, parameters=123_426_304, trained_as="Qwen2ForCausalLM", eos="</s>"
        )

    full = card(CONTENT)
    assert full.startswith("---\nlicense: unknown\nlibrary_name: transformers\n")
    # The metadata as Hugging Face's client reads it.
    named = replace(CONTENT, licence="mit", data_licence="cc-by-sa-4.0", languages=("zh", "no"))
    read = ModelCard(card(named))
    assert (read.data.license, read.data.language) == ("mit", ["zh", "no"])
    assert (read.data.library_name, read.data.pipeline_tag) == ("transformers", "text-generation")
    assert read.data.to_dict()["frameworks"] == ["pytorch"]  # as ModelScope names it
    assert "Training data: cc-by-sa-4.0" in read.text and "训练数据：cc-by-sa-4.0" in read.text
    assert "the publisher stated no licence" in full and "the publisher stated" not in read.text
    assert "![" not in full and "](loss.svg)" in card(replace(CONTENT, curve="<svg/>"))
    for part in ("123.4M", "123,426,304", "bfloat16", "vocabulary 512", "| tokens | 884,000 |"):
        assert part in full
    for part in ("b\\|c.jsonl", "5.12346", "0.0005", "step 7"):
        assert part in full
    bare = card(CardContent("x"))
    assert "## Data" not in bare and "was trained as" not in bare
    config.architectures = ["LlamaForCausalLM"]
    assert "trained as `Qwen2ForCausalLM`" in card(CardContent("x"))


def test_languages_are_seen_in_the_text() -> None:
    assert languages_of(["北京是中国的首都，位于华北平原。"]) == ("zh",)
    assert languages_of(["The history of the city, and of its river in the north."]) == ("en",)
    assert languages_of(["北京 the capital of China and 中国", "is in the north"]) == ("zh", "en")
    assert languages_of(["東京は日本の首都であり、世界最大級の都市である。", "Москва"]) == ()
