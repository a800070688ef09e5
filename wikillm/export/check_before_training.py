"""Predict whether a run can be exported, before it is trained. (rank 0)"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from wikillm.core.errors import WikiLLMError
from wikillm.core.files import write_atomic, write_json
from wikillm.core.log import say, warn
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.export import plain_transformers
from wikillm.export.compare import compare_tokens, ids_that_differ
from wikillm.export.probe_texts import probe_texts
from wikillm.export.tokenizer_files import is_qwen2_kind, model_type_for, tokenizer_files

_POSITIONS = 2048  # positions of the trial model folder; they do not affect ids


def predict_export(tokenizer_dir: Path, architecture: str, init_from: str | None = None) -> None:
    """Print how the model will be written, and warn if its export would be refused.

    Every version of transformers opens tokenizers of Qwen2's kind correctly, so they are not
    checked. Other tokenizers are opened with the installed transformers, and compared on the texts
    of the export's proof.
    """
    if init_from is not None:
        _compare_with_start(tokenizer_dir, Path(init_from))
    if is_qwen2_kind(json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))):
        return
    try:
        _check_tokenizer(tokenizer_dir, architecture)
    except WikiLLMError as error:
        warn(f"`wikillm export` will refuse this run.\n{error}")
    except Exception as error:  # any error of transformers; training does not depend on it
        warn(f"`wikillm export` will fail: transformers cannot open this tokenizer.\n  {error!r}")


def _check_tokenizer(tokenizer_dir: Path, architecture: str) -> None:
    """Raises the error that the export would raise."""
    files = tokenizer_files(tokenizer_dir, max_length=_POSITIONS)
    model_type = model_type_for(architecture, files["tokenizer.json"])
    if model_type != architecture:
        say(
            f"note       the tokenizer is not of {architecture}'s kind: `wikillm export` will "
            f"write the model as {model_type}, an equal computation, so that transformers opens "
            "the folder with the trained tokenizer"
        )
    trained = load_tokenizer(tokenizer_dir)
    texts = probe_texts(trained)
    with tempfile.TemporaryDirectory(prefix="wikillm-tokenizer-") as folder:
        for name, text in files.items():
            write_atomic(Path(folder) / name, text)
        write_json(Path(folder) / "config.json", {"model_type": model_type})
        compare_tokens(plain_transformers.tokenize(folder, texts), trained, texts)


def _compare_with_start(tokenizer_dir: Path, start: Path) -> None:
    """Warn if a model would continue training with other ids than it was trained on before."""
    if not (start / "tokenizer.json").is_file():
        return
    trained = load_tokenizer(tokenizer_dir)
    texts = probe_texts(trained)
    if differing := ids_that_differ(load_tokenizer(start), trained, texts):
        warn(
            f"model.init_from={start} was trained with another tokenizer: "
            f"{differing} of {len(texts)} texts get other ids.\n  fix: data.tokenizer={start}"
        )
