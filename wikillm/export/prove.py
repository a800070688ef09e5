"""Prove that a folder holds the trained model, with plain transformers in a separate process.

The ids of several hundred texts must equal the ids of the training tokenizer, and the logits must
equal the logits of the trained weights. The process uses the installed transformers;
tests/e2e/test_transformers_versions.py covers other versions.
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
from wikillm.export import plain_transformers
from wikillm.export.compare import compare_tokens
from wikillm.export.probe_texts import PROMPT

# Tolerances relative to the largest logit, because the number of threads changes the order of sums.
TOLERANCE = 1e-4
TOLERANCE_16_BIT = 3e-2


@dataclass(frozen=True, slots=True)
class Proof:
    """The number of texts compared, and the versions that the proof used."""

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
        texts: texts to tokenize.
        ids: a row of ids for the model.
        logits: logits of the trained weights for `ids`, (1, len(ids), vocabulary), float32.
        dtype: the stored type of the weights, in which the logits were computed.

    Raises:
        DataError: the ids differ.
        CheckpointError: the logits differ.
        MachineError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="wikillm-proof-") as temporary:
        answer_path = Path(temporary) / "answer"
        request: dict[str, Any] = {"folder": str(folder.absolute()), "prompt": PROMPT}
        request |= {"texts": list(texts), "ids": list(ids)}
        answer = _run_program(request, Path(temporary) / "request", answer_path)
        compare_tokens(answer, trained, texts)
        found = load_file(f"{answer_path}.safetensors")["logits"]
    tolerance = TOLERANCE if dtype is torch.float32 else TOLERANCE_16_BIT
    _compare_logits(found, logits, tolerance, answer)
    start = trained.encode(PROMPT)
    if answer["generated"][: len(start)] != start or len(answer["generated"]) != len(start) + 1:
        what = "The example in the model card does not continue its prompt."
        raise DataError(what, got=str(answer["generated"]))
    return Proof(len(texts), str(answer["transformers"]), str(answer["class"]))


def _run_program(
    request: Mapping[str, Any], request_path: Path, answer_path: Path
) -> dict[str, Any]:
    request_path.write_text(json.dumps(request), encoding="utf-8")
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ["CUDA_VISIBLE_DEVICES"] = ""
    command = [
        sys.executable,
        "-P",
        plain_transformers.__file__,
        str(request_path),
        str(answer_path),
    ]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0 or not answer_path.is_file():
        code = done.returncode
        lines = done.stderr.strip().splitlines() or [f"exit code {code} without a message"]
        if code < 0:
            lines = [f"its process was killed by signal {-code}; 9 often means too little memory"]
        raise MachineError(
            "The exported folder could not be opened with plain transformers, so it is not kept.",
            got=lines[-1],
            fix="free memory if the process was killed; else run `python -m pip check`, and report "
            "the output with --debug",
        )
    answer: dict[str, Any] = json.loads(answer_path.read_text(encoding="utf-8"))
    return answer


def _compare_logits(
    computed: torch.Tensor, expected: torch.Tensor, tolerance: float, answer: Mapping[str, Any]
) -> None:
    scale = float(expected.nan_to_num().abs().max())
    if torch.allclose(
        computed, expected, rtol=0, atol=tolerance * max(scale, 1e-6), equal_nan=True
    ):
        return
    apart = float((computed - expected).nan_to_num().abs().max())
    raise CheckpointError(
        "The exported folder does not compute the logits of the trained model.",
        got=f"transformers {answer['transformers']}, {answer['architecture']}: "
        f"logits up to {scale:.4g} differ by {apart:.4g}",
        fix="pip install 'transformers==5.23.0', the tested version, and export again",
    )
