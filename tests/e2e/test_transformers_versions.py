"""Exported folders in other versions of transformers give the same token ids and logits.

tests/unit covers the installed version. This file downloads others with pip (60 MB) and runs
only with WIKILLM_VERSIONS=1. WIKILLM_VERSIONS_DIR=FOLDER keeps the downloads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.foreign_tokenizers import KINDS, OF_QWEN2S_KIND, write_foreign
from harness.tiny_model import tiny_model, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from wikillm.data.tokenizer.tokenizer import copy_tokenizer, load_tokenizer
from wikillm.export import plain_transformers
from wikillm.export.card import CardContent
from wikillm.export.compare import compare_tokens
from wikillm.export.folder import export_model
from wikillm.export.probe_texts import PROMPT, probe_ids, probe_texts
from wikillm.export.weights import read_weights, trained_logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("WIKILLM_VERSIONS"), reason="fetches packages: WIKILLM_VERSIONS=1"
    ),
]
QWEN3 = "qwen3-model"  # another architecture, in addition to the kinds of tokenizers
VERSIONS = {  # version -> packages it needs in other versions than the installed ones
    "4.51.3": ("tokenizers==0.21.4", "huggingface-hub==0.36.0"),
    "4.57.6": ("tokenizers==0.22.1", "huggingface-hub==0.36.0"),
    "5.17.0": ("tokenizers==0.23.3", "huggingface-hub==1.5.0", "httpx==0.28.1", "httpcore==1.0.9"),
    "5.23.0": (),
}


@pytest.fixture(scope="module", params=VERSIONS)
def version(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """(version, the PYTHONPATH that contains it)."""
    kept = os.environ.get("WIKILLM_VERSIONS_DIR")  # without it, they are downloaded each time
    folder = (Path(kept) if kept else tmp_path_factory.mktemp("versions")) / request.param
    if not (folder / "transformers").is_dir():
        packages = [f"transformers=={request.param}", *VERSIONS[request.param]]
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            *packages,
        ]
        subprocess.run(command, check=True)
    return request.param, str(folder)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """kind -> (checkpoint, export): Qwen2 with each tokenizer, and Qwen3 with that of Llama 3."""
    base = tmp_path_factory.mktemp("exports")
    made = {}
    for kind in KINDS:
        tokenizer = base / kind / "tokenizer"
        copy_tokenizer(write_foreign(kind, base / kind / "source"), tokenizer)
        model = tiny_model(tied=kind != "llama", eos_id=load_tokenizer(tokenizer).eos_id)
        made[kind] = _export(base / kind, tokenizer, model)
    config = tiny_model(
        eos_id=load_tokenizer(made["llama3"][0].parents[1] / "tokenizer").eos_id
    ).config.to_dict()
    config.pop("model_type")
    torch.manual_seed(0)
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**{**config, "head_dim": 16}))
    made[QWEN3] = _export(base / QWEN3, base / "llama3" / "tokenizer", qwen3)
    return made


def _export(base: Path, tokenizer: Path, model: torch.nn.Module) -> tuple[Path, Path]:
    checkpoint = write_checkpoint(base, model)
    done = export_model(
        checkpoint,
        base / "m",
        tokenizer_dir=tokenizer,
        content=CardContent("x"),
        dtype="float32",
        prove=False,
    )
    if not (base / "tokenizer").exists():
        copy_tokenizer(tokenizer, base / "tokenizer")
    return checkpoint, done.folder


ALL_KINDS = (*KINDS, QWEN3)
PROGRAM = """\
import runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for place in sys.argv[2:]:
    sys.argv = ["plain_transformers.py", place + "/request", place + "/answer"]
    main()
"""


@pytest.fixture(scope="module")
def answers(
    version: tuple[str, str],
    exports: dict[str, tuple[Path, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with kind/answer for each kind. One process with that version writes all of them."""
    base = tmp_path_factory.mktemp("answers")
    for kind, (checkpoint, folder) in exports.items():
        trained = load_tokenizer(checkpoint.parents[1] / "tokenizer")
        ids = list(probe_ids(trained, 64))
        request = {
            "folder": str(folder),
            "texts": probe_texts(trained),
            "ids": ids,
            "prompt": PROMPT,
        }
        (base / kind).mkdir()
        (base / kind / "request").write_text(json.dumps(request))
    environ = {
        **os.environ,
        "PYTHONPATH": version[1],
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    places = [str(base / kind) for kind in exports]
    command = [sys.executable, "-P", "-c", PROGRAM, str(plain_transformers.__file__), *places]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=base)
    assert done.returncode == 0, done.stderr
    return base


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_ids_and_logits_are_those_of_training(
    version: tuple[str, str], exports: dict[str, tuple[Path, Path]], answers: Path, kind: str
) -> None:
    checkpoint, _ = exports[kind]
    trained = load_tokenizer(checkpoint.parents[1] / "tokenizer")
    answer = json.loads((answers / kind / "answer").read_text())
    assert answer["transformers"] == version[0]
    expected = "Qwen3" if kind == QWEN3 else "Qwen2" if kind in OF_QWEN2S_KIND else "Llama"
    assert answer["architecture"] == f"{expected}ForCausalLM"
    compare_tokens(answer, trained, probe_texts(trained))
    weights = read_weights(checkpoint, verified=True)
    meant = trained_logits(AutoConfig.from_pretrained(checkpoint), weights, probe_ids(trained, 64))
    assert meant.std() > 0.01
    found = load_file(answers / kind / "answer.safetensors")["logits"]
    torch.testing.assert_close(found, meant, rtol=0, atol=1e-5)
    assert answer["generated"][:-1] == trained.encode(PROMPT)
