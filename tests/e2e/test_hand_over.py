"""Exports in the tools that models are handed on to: llama.cpp, TRL.

These are not installed with WikiLLM. With `pip install gguf xllamacpp` and
WIKILLM_LLAMA_CPP=FOLDER, a checkout of llama.cpp, or with `pip install trl`, `pytest -m deep` runs
them, on the export that WIKILLM_EXPORT names or on a tiny one. docs/guide/hand-over.md records such
runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.tiny_model import tiny_model, write_checkpoint, write_tokenizer
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.export.card import CardContent
from wikillm.export.folder import export_model
from wikillm.export.probe_texts import probe_texts

pytestmark = pytest.mark.deep
REPOSITORY = Path(__file__).parents[2]
LLAMA_CPP = os.environ.get("WIKILLM_LLAMA_CPP", "")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of its own, which cuts text as Qwen2's does."""
    if given := os.environ.get("WIKILLM_EXPORT"):
        return Path(given).absolute()
    base = tmp_path_factory.mktemp("export")
    tokenizer = write_tokenizer(
        base / "tokenizer", ["北京是中国的首都。", "The history of it."] * 20
    )
    checkpoint = write_checkpoint(base, tiny_model())
    content = CardContent("tiny")
    return export_model(
        checkpoint, base / "tiny", tokenizer_dir=tokenizer, content=content, dtype="float32"
    ).folder


@pytest.fixture(scope="module")
def gguf_file(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    if not LLAMA_CPP:
        pytest.skip("WIKILLM_LLAMA_CPP does not name a checkout of llama.cpp")
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    script = REPOSITORY / "examples" / "hand_over" / "to_gguf.py"
    command = [sys.executable, str(script), LLAMA_CPP, str(export)]
    command += ["--outtype", "f32", "--outfile", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


def test_a_gguf_file_holds_the_exported_tensors(export: Path, gguf_file: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 64)
    weights = load_file(export / "model.safetensors")
    assert len(found) == len(weights)
    for name, meant in weights.items():
        base, _, kind = name.rpartition(".")
        np.testing.assert_array_equal(found[f"{names.get_name(base)}.{kind}"], meant)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "qwen2"


def test_llama_cpp_gives_the_same_ids_and_continues_the_same(export: Path, gguf_file: Path) -> None:
    llama = pytest.importorskip("xllamacpp")
    parameters = llama.CommonParams()
    parameters.model.path = str(gguf_file)
    parameters.n_ctx = 64
    parameters.n_parallel = 1
    parameters.warmup = False
    server = llama.Server(parameters)

    def ask(path: str, question: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(question).encode()
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    # llama.cpp does not normalize: texts that are not NFC may get other ids. The converter takes
    # a token of the vocabulary for a special one if it looks so, such as Qwen2's `</s>`.
    tokenizer = AutoTokenizer.from_pretrained(export)
    texts = [
        text
        for text in probe_texts(load_tokenizer(export))
        if unicodedata.is_normalized("NFC", text) and "</s>" not in text
    ]
    assert len(texts) > 200
    for text in texts:
        found = ask("/tokenize", {"content": text, "add_special": False})
        assert found == tokenizer(text)["input_ids"], repr(text)
    model = AutoModelForCausalLM.from_pretrained(export)
    for prompt in ("The history of", "北京是"):
        ids = tokenizer(prompt)["input_ids"]
        meant = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        question = {"prompt": ids, "n_predict": NEW_TOKENS, "temperature": 0}
        found = ask("/completion", {**question, "return_tokens": True})
        assert found == meant[0].tolist()[len(ids) :]


def test_trl_fine_tunes_the_folder(export: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    pairs = [(a, b) for a in range(8) for b in range(8)]
    rows = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a, b in pairs]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=20,
        logging_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=64,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(export)
    trainer = trl.SFTTrainer(
        str(export), settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}")
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2, losses
