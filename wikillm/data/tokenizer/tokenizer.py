"""A tokenizer folder (`tokenizer.json` + `tokenizer_config.json`), checked and opened with the `tokenizers` library.

Only ordinary text is encoded: a literal `<|endoftext|>` inside an article becomes the characters it is written
with, never a document boundary. No template, truncation or padding that a tokenizer.json may carry is applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from wikillm.core.errors import DataError
from wikillm.core.files import write_atomic, write_json

KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
"""Looked for in the vocabulary, in this order, when tokenizer_config.json names no EOS."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Text to ids and back. `length` is the highest id + 1: what an embedding must have at least."""

    backend: Tokenizer
    sha256: str  # of tokenizer.json
    eos_token: str
    eos_id: int
    length: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as ordinary text, without EOS."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many; keep it to a few MiB of text, since each token costs about 100 bytes here."""
        return [
            encoding.ids
            for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens shown."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Open a tokenizer folder. Raises DataError when it has no usable tokenizer.json or no EOS."""
    path = folder / "tokenizer.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            "A tokenizer folder has no readable tokenizer.json.",
            got=f"{folder}: {error.strerror}",
            fix="name a folder with tokenizer.json, such as a download of Qwen/Qwen2-0.5B, or data.tokenizer=train:8000",
        ) from None
    try:
        backend, vocabulary = _opened(content)
    except Exception as error:  # the library raises bare Exception
        hint = (
            "it is a Git LFS pointer, not the file"
            if content.startswith(b"version https://git-lfs")
            else str(error)
        )
        raise DataError(
            "A tokenizer.json is damaged.", got=f"{path}: {hint}", fix="download it again"
        ) from None
    eos = _eos_token(folder, vocabulary)
    added = backend.get_added_tokens_decoder().get(vocabulary[eos])
    if (
        added is not None and not added.special
    ):  # else a literal one in a text would end the document
        backend.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    return TextTokenizer(
        backend,
        hashlib.sha256(content).hexdigest(),
        eos,
        vocabulary[eos],
        max(vocabulary.values(), default=-1) + 1,
    )


@lru_cache(maxsize=1)
def _opened(content: bytes) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer.json, parsed once: Qwen2's costs a CPU second, and a build asks for it and for its copy six times."""
    backend = Tokenizer.from_str(content.decode())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None  # the ids of a text are the same each time
    return backend, backend.get_vocab(with_added_tokens=True)


def prompt_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer for what a user types: special tokens written in a prompt are special, unlike in training text."""
    load_tokenizer(folder)  # refuses what is damaged
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _eos_token(folder: Path, vocabulary: dict[str, int]) -> str:
    named = _config(folder).get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    if named is not None and not isinstance(named, str):
        got = f"{folder / 'tokenizer_config.json'}: eos_token is {named!r}"
        raise DataError("A tokenizer_config.json is damaged.", got=got, fix="download it again")
    candidates = (named,) if named else KNOWN_EOS
    for token in candidates:
        if token in vocabulary:
            return token
    raise DataError(
        "A tokenizer has no end-of-text token, which separates documents.",
        got=f"{folder}: "
        + (
            f"its eos_token {named!r} is not in the vocabulary"
            if named
            else f"none of {', '.join(KNOWN_EOS)}"
        ),
        fix="set eos_token in its tokenizer_config.json",
    )


def _config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "A tokenizer_config.json is damaged.", got=f"{path}: {error}", fix="download it again"
        ) from None
    return value if isinstance(value, dict) else {}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Keep a tokenizer with a store: `transformers.AutoTokenizer` opens the copy and finds EOS and padding in it.

    `auto_map` is left out: it would make `transformers` run code from the folder. tokenizer.json is written last.
    """
    tokenizer, config = load_tokenizer(source), _config(source)
    config.pop("auto_map", None)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    config["eos_token"] = config.get("eos_token") or tokenizer.eos_token
    config["pad_token"] = config.get("pad_token") or tokenizer.eos_token
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "tokenizer_config.json", config)
    for extra in ("special_tokens_map.json", "chat_template.jinja"):
        if (source / extra).is_file():
            write_atomic(target / extra, (source / extra).read_bytes())
    write_atomic(target / "tokenizer.json", (source / "tokenizer.json").read_bytes())
