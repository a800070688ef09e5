"""Which tokenizer `data.tokenizer` means: a folder that is here, one from a hub, or one to be trained.

    FOLDER      that folder
    qwen2       $WIKILLM_TOKENIZER, ./qwen2-tokenizer, data/qwen2-tokenizer, data/, the Hugging Face, ModelScope and
                WikiLLM caches, then ModelScope, then the Hugging Face endpoint ($HF_ENDPOINT)
    train:8000  byte-level BPE of that size, trained on the corpus
    auto        qwen2 if it is found, else trained in a size that suits the corpus

A name given explicitly never falls back. A folder that is found but damaged is an error, for auto too: training
another tokenizer instead would be a surprise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wikillm.config.trained_tokenizer import parse_train
from wikillm.core.errors import DataError, did_you_mean
from wikillm.data.tokenizer.download import HubUnreachable, fetch_qwen2
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.data.tokenizer.train import MAX_TRAINING_BYTES, TRAINER_VERSION, default_vocabulary

QWEN2_LENGTH = 151_646  # 151,643 ranks and 3 special tokens
QWEN2_MODELS = (
    "Qwen2-0.5B",
    "Qwen2-1.5B",
    "Qwen2-7B",
    "Qwen2-72B",
)  # one tokenizer; EOS is <|endoftext|>

HOW_TO_GET_QWEN2 = (
    "modelscope download --model Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json --local_dir qwen2-tokenizer\n"
    "or: hf download Qwen/Qwen2-0.5B tokenizer.json tokenizer_config.json --local-dir qwen2-tokenizer\n"
    "or name its folder: data.tokenizer=FOLDER, or WIKILLM_TOKENIZER=FOLDER in the environment\n"
    "or train one on the corpus: data.tokenizer=train:8000"
)


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """A tokenizer that is decided on. `folder` holds it, or `vocabulary` says what size to train."""

    name: str
    origin: str
    folder: Path | None = None
    vocabulary: int | None = None

    def facts(self) -> dict[str, object]:
        """What of it decides the tokens: part of a store's fingerprint."""
        if self.folder is None:
            return {
                "train": self.vocabulary,
                "trainer": TRAINER_VERSION,
                "bytes": MAX_TRAINING_BYTES,
            }
        tokenizer = load_tokenizer(self.folder)
        return {"sha256": tokenizer.sha256, "eos": tokenizer.eos_token}


def choose_tokenizer(
    setting: str, estimated_bytes: int, *, ask_hubs: bool = True
) -> TokenizerChoice:
    """Decide. Raises DataError when a tokenizer that was named is not there or damaged.

    Args:
        setting: data.tokenizer.
        estimated_bytes: size of the corpus, for the vocabulary that `auto` trains.
        ask_hubs: False keeps auto from asking them (they failed when this corpus was prepared before).
    """
    if setting.startswith("train:"):
        vocabulary = parse_train(setting)
        return TokenizerChoice(
            f"train:{vocabulary}", "trained on this corpus", vocabulary=vocabulary
        )
    if setting not in ("auto", "qwen2"):
        return _folder(setting)
    found = next(_here(), None)
    if found is not None:
        return found
    try:
        if setting == "auto" and not ask_hubs:
            raise HubUnreachable("hubs did not answer when this corpus was prepared before")
        target = _cache_folder()
        hub = fetch_qwen2(target)
        return TokenizerChoice("qwen2", f"{hub}, kept in {target}", folder=target)
    except HubUnreachable as error:
        if setting == "qwen2":
            raise DataError(
                "The Qwen2 tokenizer was not found.",
                got="looked in " + ", ".join(places()) + "\n" + str(error),
                fix=HOW_TO_GET_QWEN2,
            ) from None
    vocabulary = default_vocabulary(estimated_bytes)
    origin = "trained on this corpus, since Qwen2's was found neither here nor on a hub"
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


def _here() -> Iterator[TokenizerChoice]:
    """Qwen2's tokenizer wherever it lies on this machine, in the documented order."""
    named = os.environ.get("WIKILLM_TOKENIZER")
    if named:
        folder = _folder(named).folder
        assert folder is not None, "a folder that was named is a folder"
        yield _checked(folder, f"$WIKILLM_TOKENIZER = {named}")
    for place in ("qwen2-tokenizer", "data/qwen2-tokenizer", "data"):
        if (Path(place) / "tokenizer.json").is_file():
            yield _checked(Path(place), f"./{place}")
    for folder, cache in _in_caches():
        if (folder / "tokenizer.json").is_file():
            yield _checked(folder, f"{cache}: {folder}")


def qwen2_here() -> Path | None:
    """The folder of Qwen2's tokenizer on this machine, if there is a sound one; no hub is asked."""
    try:
        found = next(_here(), None)
    except DataError:
        return None
    return found.folder if found is not None else None


def _checked(folder: Path, origin: str) -> TokenizerChoice:
    tokenizer = load_tokenizer(folder)
    if not _is_qwen2(tokenizer):
        raise DataError(
            "This is not Qwen2's tokenizer.",
            got=f"{origin}: {tokenizer.length} tokens, EOS {tokenizer.eos_token}",
            fix=f"data.tokenizer={folder} uses it as it is; or take it away from there",
        )
    return TokenizerChoice("qwen2", origin, folder=folder)


def _is_qwen2(tokenizer: TextTokenizer) -> bool:
    return (
        tokenizer.backend.token_to_id("<|endoftext|>") == 151_643
        and tokenizer.length >= QWEN2_LENGTH
    )


def _in_caches() -> Iterator[tuple[Path, str]]:
    for root in _hf_caches():
        for model in QWEN2_MODELS:
            snapshots = root / f"models--Qwen--{model}" / "snapshots"
            if snapshots.is_dir():
                yield from (
                    (path, "Hugging Face cache")
                    for path in sorted(snapshots.iterdir(), reverse=True)
                )
    root = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    for middle in ("hub/models/Qwen", "hub/Qwen", "models/Qwen", "Qwen"):
        for model in QWEN2_MODELS:
            for name in (
                model.replace(".", "___"),
                model,
            ):  # ModelScope writes dots in folder names like this
                yield root / middle / name, "ModelScope cache"
    yield _cache_folder(), "WikiLLM cache"


def _hf_caches() -> list[Path]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return [Path(os.environ[name]).expanduser()]
    home = os.environ.get("HF_HOME")
    return [
        Path(home).expanduser() / "hub" if home else Path("~/.cache/huggingface/hub").expanduser()
    ]


def _cache_folder() -> Path:
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "wikillm"
        / "qwen2-tokenizer"
    )


def places() -> tuple[str, ...]:
    """Where qwen2 is looked for, for messages."""
    caches = "the caches of Hugging Face, ModelScope and WikiLLM"
    return ("$WIKILLM_TOKENIZER", "./qwen2-tokenizer", "data/qwen2-tokenizer", "data/", caches)
