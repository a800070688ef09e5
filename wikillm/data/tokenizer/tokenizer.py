"""Check and open a tokenizer folder (`tokenizer.json`, `tokenizer_config.json`).

Training text is encoded as ordinary text: a literal `<|endoftext|>` in an article becomes the
tokens of its characters, never a document boundary. Templates, truncation and padding in a
tokenizer.json are not applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from wikillm.core.errors import DataError
from wikillm.core.faults import is_of_the_file
from wikillm.core.files import write_atomic, write_json

KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
"""Searched in the vocabulary, in this order, when tokenizer_config.json names no EOS."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Encodes and decodes text. `length`: highest id + 1, the smallest number of embedding rows."""

    backend: Tokenizer
    sha256: str  # of tokenizer.json
    eos_token: str
    eos_id: int
    length: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, encoded as ordinary text, without EOS."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts; encoding needs about 100 bytes of memory per token."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Open a tokenizer folder. Raises DataError if tokenizer.json or its EOS is unusable."""
    path = folder / "tokenizer.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        if not is_of_the_file(error):
            raise
        raise DataError(
            "A tokenizer folder has no readable tokenizer.json.",
            got=f"{folder}: {error.strerror}",
            fix="name a folder with tokenizer.json, such as a download of Qwen/Qwen2-0.5B, "
            "or data.tokenizer=train:8000",
        ) from None
    try:
        backend, vocabulary = _opened(content)
    except Exception as error:  # the library raises bare Exception
        is_pointer = content.startswith(b"version https://git-lfs")
        hint = "it is a Git LFS pointer, not the file" if is_pointer else str(error)
        raise _damaged(path, hint) from None
    eos = _eos_token(folder, vocabulary)
    # An EOS that is not special would be recognised in ordinary text and end a document there.
    added = backend.get_added_tokens_decoder().get(vocabulary[eos])
    if added is not None and not added.special:
        backend.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    length = max(vocabulary.values(), default=-1) + 1
    digest = hashlib.sha256(content).hexdigest()
    return TextTokenizer(backend, digest, eos, vocabulary[eos], length)


@lru_cache(maxsize=1)
def _opened(content: bytes) -> tuple[Tokenizer, dict[str, int]]:
    """Parse a tokenizer.json; cached, as Qwen2's takes a second and a build opens it six times."""
    backend = Tokenizer.from_str(content.decode())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None  # with dropout the ids of a text would vary
    return backend, backend.get_vocab(with_added_tokens=True)


def prompt_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer for prompts: unlike in training text, special tokens are recognised."""
    load_tokenizer(folder)  # raises if the folder is damaged
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _eos_token(folder: Path, vocabulary: dict[str, int]) -> str:
    named = read_settings_file(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if named is not None and not isinstance(named, str):
        raise _damaged(folder / "tokenizer_config.json", f"eos_token is {named!r}")
    for token in (named,) if named else KNOWN_EOS:
        if token in vocabulary:
            return token
    missing = f"its eos_token {named!r} is not in the vocabulary"
    raise DataError(
        "A tokenizer has no end-of-text token, which separates documents.",
        got=f"{folder}: {missing if named else 'none of ' + ', '.join(KNOWN_EOS)}",
        fix="set eos_token in its tokenizer_config.json",
    )


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read a JSON object beside a tokenizer.json; {} if missing. Raises DataError if damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if not is_of_the_file(error):
            raise
        raise _damaged(path, str(error)) from None
    return value if isinstance(value, dict) else {}


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"A {path.name} is damaged.", got=f"{path}: {why}", fix="download it again")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer into a store, with EOS and padding for `transformers.AutoTokenizer`.

    `auto_map` is left out: with it `transformers` would run code from the folder. tokenizer.json
    is written last.
    """
    tokenizer = load_tokenizer(source)
    config = read_settings_file(source / "tokenizer_config.json")
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
