"""Choose the tokenizer of `data.tokenizer`: found here, downloaded, or trained on the corpus.

    FOLDER      the tokenizer in that folder
    qwen2       $WIKILLM_TOKENIZER, ./qwen2-tokenizer, data/qwen2-tokenizer, data/, the caches of
                Hugging Face, ModelScope and WikiLLM, then ModelScope, then $HF_ENDPOINT
    train:8000  byte-level BPE of that size, trained on the corpus
    auto        qwen2 if it is found, else a BPE trained on the corpus, sized to it

Only `auto` falls back to another tokenizer. A damaged folder is an error, even for `auto`, so that
no other tokenizer is used unnoticed.
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
"""Models that share one tokenizer, whose EOS is <|endoftext|>."""

HOW_TO_GET_QWEN2 = (
    "modelscope download --model Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json "
    "--local_dir qwen2-tokenizer\n"
    "or: hf download Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json "
    "--local-dir qwen2-tokenizer\n"
    "or name its folder: data.tokenizer=FOLDER, or WIKILLM_TOKENIZER=FOLDER in the environment\n"
    "or train a tokenizer on the corpus: data.tokenizer=train:8000"
)
_PLACES = (
    "$WIKILLM_TOKENIZER, ./qwen2-tokenizer, data/qwen2-tokenizer, data/, "
    "the caches of Hugging Face, ModelScope and WikiLLM"
)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """The chosen tokenizer: it is in `folder`, or will be trained to `vocabulary` tokens."""

    name: str
    origin: str
    folder: Path | None = None
    vocabulary: int | None = None

    def facts(self) -> dict[str, object]:
        """The facts that decide the tokens, as part of a store's fingerprint."""
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
    """Choose the tokenizer. Raises DataError when a named tokenizer is missing or damaged.

    Args:
        setting: data.tokenizer.
        estimated_bytes: size of the corpus, which decides the vocabulary that `auto` trains.
        may_download: False when the download with `auto` failed before for this corpus.
    """
    if setting.startswith("train:"):
        return _trained(parse_train(setting), "trained on this corpus")
    if setting not in ("auto", "qwen2"):
        return _folder(setting)
    # Look for Qwen2's tokenizer on this machine first, then download it.
    found = next(_local_qwen2(), None)
    if found is not None:
        return found
    try:
        if setting == "auto" and not may_download:
            raise DownloadFailed("the download failed when this corpus was prepared before")
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
    folder = Path(os.path.expanduser(setting))
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
    """All copies of Qwen2's tokenizer on this machine, in the documented order."""
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
    """The folder of an undamaged Qwen2 tokenizer on this machine, or None; downloads nothing."""
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
            fix=f"data.tokenizer={folder} uses this tokenizer; or remove it from that folder",
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
            for name in (model.replace(".", "___"), model):  # ModelScope writes a dot as ___
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
