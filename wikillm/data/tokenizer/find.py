"""Which tokenizer `data.tokenizer` means: a folder on this machine, a download, or one to train.

    FOLDER      that folder
    qwen2       $WIKILLM_TOKENIZER, ./qwen2-tokenizer, data/qwen2-tokenizer, data/, the caches of
                Hugging Face, ModelScope and WikiLLM, then ModelScope, then $HF_ENDPOINT
    train:8000  byte-level BPE of that size, trained on the corpus
    auto        qwen2 if it is found, else trained in a size that suits the corpus

Only `auto` falls back. A folder that is found but damaged is an error, for `auto` too: it must not
lead to another tokenizer without notice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wikillm.config.trained_tokenizer import parse_train
from wikillm.core.errors import DataError, did_you_mean
from wikillm.data.tokenizer.download import DownloadFailed, download_qwen2
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.data.tokenizer.train import MAX_TRAINING_BYTES, TRAINER_VERSION, default_vocabulary

QWEN2_LENGTH = 151_646  # 151,643 ranks and 3 special tokens
QWEN2_MODELS = ("Qwen2-0.5B", "Qwen2-1.5B", "Qwen2-7B", "Qwen2-72B")
"""They share one tokenizer, whose EOS is <|endoftext|>."""

HOW_TO_GET_QWEN2 = (
    "modelscope download --model Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json "
    "--local_dir qwen2-tokenizer\n"
    "or: hf download Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json "
    "--local-dir qwen2-tokenizer\n"
    "or name its folder: data.tokenizer=FOLDER, or WIKILLM_TOKENIZER=FOLDER in the environment\n"
    "or train one on the corpus: data.tokenizer=train:8000"
)
_PLACES = (
    "$WIKILLM_TOKENIZER, ./qwen2-tokenizer, data/qwen2-tokenizer, data/, "
    "the caches of Hugging Face, ModelScope and WikiLLM"
)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """A tokenizer that was decided on: it is in `folder`, or is trained to `vocabulary` tokens."""

    name: str
    origin: str
    folder: Path | None = None
    vocabulary: int | None = None

    def facts(self) -> dict[str, object]:
        """What decides the tokens: part of a store's fingerprint."""
        if self.folder is None:
            return {
                "train": self.vocabulary,
                "trainer": TRAINER_VERSION,
                "bytes": MAX_TRAINING_BYTES,
            }
        tokenizer = load_tokenizer(self.folder)
        return {"sha256": tokenizer.sha256, "eos": tokenizer.eos_token}


def choose_tokenizer(
    setting: str, estimated_bytes: int, *, may_download: bool = True
) -> TokenizerChoice:
    """Decide. Raises DataError when a tokenizer that was named is missing or damaged.

    Args:
        setting: data.tokenizer.
        estimated_bytes: size of the corpus, for the vocabulary that `auto` trains.
        may_download: False when `auto` failed to download it for this corpus before.
    """
    if setting.startswith("train:"):
        return _trained(parse_train(setting), "trained on this corpus")
    if setting not in ("auto", "qwen2"):
        return _folder(setting)
    # Qwen2's, named or by auto: on this machine first, then by download.
    found = next(_local_qwen2(), None)
    if found is not None:
        return found
    try:
        if setting == "auto" and not may_download:
            raise DownloadFailed("no download worked when this corpus was prepared before")
        target = _cache_folder()
        source = download_qwen2(target)
        return TokenizerChoice("qwen2", f"{source}, kept in {target}", folder=target)
    except DownloadFailed as error:
        if setting == "qwen2":
            raise DataError(
                "The Qwen2 tokenizer was not found.",
                got=f"looked in {_PLACES}\n{error}",
                fix=HOW_TO_GET_QWEN2,
            ) from None
    return _trained(
        default_vocabulary(estimated_bytes),
        "trained on this corpus, since Qwen2's was neither found here nor downloaded",
    )


def _trained(vocabulary: int, origin: str) -> TokenizerChoice:
    return TokenizerChoice(f"train:{vocabulary}", origin, vocabulary=vocabulary)


def _folder(setting: str) -> TokenizerChoice:
    folder = Path(setting).expanduser()
    if folder.name == "tokenizer.json":
        folder = folder.parent
    if not folder.is_dir():
        near = did_you_mean(setting, ("auto", "qwen2", "train:8000"))
        raise DataError(
            "data.tokenizer is neither auto, qwen2, train:N nor a folder.",
            got=repr(setting),
            fix=f"data.tokenizer={near}" if near else HOW_TO_GET_QWEN2,
        )
    load_tokenizer(folder)
    return TokenizerChoice(folder.absolute().name, str(folder), folder=folder)


def _local_qwen2() -> Iterator[TokenizerChoice]:
    """Qwen2's tokenizer wherever it is on this machine, in the documented order."""
    named = os.environ.get("WIKILLM_TOKENIZER")
    if named:
        folder = _folder(named).folder
        assert folder is not None, "a folder that was named is a folder"
        yield _checked(folder, f"$WIKILLM_TOKENIZER = {named}")
    names = ("qwen2-tokenizer", "data/qwen2-tokenizer", "data")
    for folder, origin in (*((Path(name), f"./{name}") for name in names), *_in_caches()):
        if (folder / "tokenizer.json").is_file():
            yield _checked(folder, origin)


def qwen2_here() -> Path | None:
    """The folder of Qwen2's tokenizer on this machine, if it is sound; nothing is downloaded."""
    try:
        found = next(_local_qwen2(), None)
    except DataError:
        return None
    return found.folder if found is not None else None


def _checked(folder: Path, origin: str) -> TokenizerChoice:
    tokenizer = load_tokenizer(folder)
    if not _is_qwen2(tokenizer):
        raise DataError(
            "This is not Qwen2's tokenizer.",
            got=f"{origin}: {tokenizer.length} tokens, EOS {tokenizer.eos_token}",
            fix=f"data.tokenizer={folder} uses it as it is; or remove it from there",
        )
    return TokenizerChoice("qwen2", origin, folder=folder)


def _is_qwen2(tokenizer: TextTokenizer) -> bool:
    eos_id = tokenizer.backend.token_to_id("<|endoftext|>")
    return eos_id == 151_643 and tokenizer.length >= QWEN2_LENGTH


def _in_caches() -> Iterator[tuple[Path, str]]:
    for model in QWEN2_MODELS:
        snapshots = _hf_cache() / f"models--Qwen--{model}" / "snapshots"
        if snapshots.is_dir():
            for folder in sorted(snapshots.iterdir(), reverse=True):
                yield folder, f"Hugging Face cache: {folder}"
    root = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    for middle in ("hub/models/Qwen", "hub/Qwen", "models/Qwen", "Qwen"):
        for model in QWEN2_MODELS:
            for name in (model.replace(".", "___"), model):  # how ModelScope writes a dot
                folder = root / middle / name
                yield folder, f"ModelScope cache: {folder}"
    yield _cache_folder(), f"WikiLLM cache: {_cache_folder()}"


def _hf_cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"


def _cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "wikillm" / "qwen2-tokenizer"
