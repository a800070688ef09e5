"""Proof that a folder is the trained model: in a process without WikiLLM, with plain Auto classes.

The ids of several hundred texts must be those of the training tokenizer, and the logits those of
the trained weights. The process uses the installed transformers;
tests/e2e/test_transformers_versions.py covers others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from wikillm.core.errors import CheckpointError, DataError, MachineError
from wikillm.data.tokenizer.tokenizer import TextTokenizer
from wikillm.export import plain
from wikillm.export.compare import compare_tokens
from wikillm.export.probe import PROMPT

# Of the largest logit; another number of threads adds in another order.
TOLERANCE = 1e-4
TOLERANCE_16_BIT = 3e-2


@dataclass(frozen=True, slots=True)
class Proof:
    """What was asked for, and what was found."""

    texts: int
    transformers: str
    tokenizer_class: str


def prove_folder(
    folder: Path,
    trained: TextTokenizer,
    texts: Sequence[str],
    ids: Sequence[int],
    logits: torch.Tensor,
    dtype: torch.dtype,
) -> Proof:
    """Open `folder` with plain transformers in a separate process, and compare.

    Args:
        trained: the tokenizer that the model was trained with.
        texts: to be cut into ids.
        ids: a row for the model.
        logits: what the trained weights make of it, (1, len(ids), vocabulary), float32.
        dtype: the weights' stored type, in which the logits were computed.

    Raises:
        DataError: other ids. CheckpointError: other logits. MachineError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="wikillm-proof-") as temporary:
        answer_path = Path(temporary) / "answer"
        request: dict[str, Any] = {"folder": str(folder.absolute()), "prompt": PROMPT}
        request |= {"texts": list(texts), "ids": list(ids)}
        answer = _ask(request, Path(temporary) / "request", answer_path)
        compare_tokens(answer, trained, texts)
        found = load_file(f"{answer_path}.safetensors")["logits"]
    tolerance = TOLERANCE if dtype is torch.float32 else TOLERANCE_16_BIT
    _compare_logits(found, logits, tolerance, answer)
    start = trained.encode(PROMPT)
    if answer["generated"][: len(start)] != start or len(answer["generated"]) != len(start) + 1:
        what = "The model card's recipe continues another text than the prompt."
        raise DataError(what, got=str(answer["generated"]))
    return Proof(len(texts), str(answer["transformers"]), str(answer["class"]))


def _ask(request: Mapping[str, Any], request_path: Path, answer_path: Path) -> dict[str, Any]:
    request_path.write_text(json.dumps(request), encoding="utf-8")
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-P", plain.__file__, str(request_path), str(answer_path)]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0 or not answer_path.is_file():
        code = done.returncode
        lines = done.stderr.strip().splitlines() or [f"it ended with code {code} and no message"]
        if code < 0:
            lines = [f"it was killed by signal {-code}; 9 often means that memory is short"]
        raise MachineError(
            "The exported folder could not be opened with plain transformers, so it is not kept.",
            got=lines[-1],
            fix="free memory where it was killed; else run `python -m pip check`, "
            "and report the message with --debug",
        )
    answer: dict[str, Any] = json.loads(answer_path.read_text(encoding="utf-8"))
    return answer


def _compare_logits(
    found: torch.Tensor, meant: torch.Tensor, tolerance: float, answer: Mapping[str, Any]
) -> None:
    scale = float(meant.nan_to_num().abs().max())
    if torch.allclose(found, meant, rtol=0, atol=tolerance * max(scale, 1e-6), equal_nan=True):
        return
    apart = float((found - meant).nan_to_num().abs().max())
    raise CheckpointError(
        "The exported folder does not compute what the trained model does.",
        got=f"transformers {answer['transformers']}, {answer['architecture']}: "
        f"logits up to {scale:.4g} differ by {apart:.4g}",
        fix="pip install 'transformers==5.23.0', the tested version, and export again",
    )
