"""A faster encoder for the build, checked against the `tokenizers` library.

`fastokens` (the extra `fast`) is optional. Before a build, it must give the same ids as
`tokenizers` for every text of a fuzz set. During the build the ids of the first documents, of the
first document of each shard and of one document in a thousand are compared. After the first
difference this store never uses the encoder again. Its shards are built again with `tokenizers`,
unless a run is training on them: then the run is stopped (`prepare.build`). So the shards of a
finished store come from encoders that never differed, or from `tokenizers` alone. The fingerprint
does not contain the encoder.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import read_object, write_json
from wikillm.core.log import say, warn
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer

REFERENCE = "tokenizers"
FASTEST = "fastokens"
FIRST_DOCUMENTS = 64
ONE_IN = 1000
CHECKED_BEFORE_TRAINING = 512
"""Replaces FIRST_DOCUMENTS when a run reads the store, as a later difference stops the run."""
REFUSED_NAME = "refused_backends.json"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Concatenated ids of several texts: text i has `ids[ends[i]:ends[i + 1]]`."""

    ids: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[Sequence[int]]) -> Encoded:
        ends = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=ends[1:])
        ids = np.fromiter(chain.from_iterable(parts), dtype=np.uint32, count=int(ends[-1]))
        return cls(ids, ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, text: int) -> npt.NDArray[np.uint32]:
        return self.ids[self.ends[text] : self.ends[text + 1]]

    def with_last(self, token: int) -> Encoded:
        """A copy with the id `token` added at the end of each text."""
        ends = self.ends + np.arange(len(self.ends))
        is_text = np.ones(int(ends[-1]), dtype=bool)
        is_text[ends[1:] - 1] = False
        ids = np.full(len(is_text), token, dtype=np.uint32)
        ids[is_text] = self.ids
        return Encoded(ids, ends)


class Encoder(Protocol):
    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each of these NFC texts, encoded as ordinary text."""
        ...


class EncoderDiffers(DataError):
    """An encoder gave other ids than `tokenizers`, or failed. The build continues without it."""


class Unusable(Exception):
    """The encoder does not support this tokenizer.json."""


@dataclass(frozen=True, slots=True)
class CheckedEncoder:
    """Encodes with a fast encoder, and compares some texts with `tokenizers`.

    Raises EncoderDiffers.
    """

    reference: TextTokenizer
    name: str
    fast: Encoder | None = None  # None uses `reference`

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, to be passed to `check`."""
        if self.fast is None:
            return Encoded.of(self.reference.encode_batch(texts))
        try:
            encoded = self.fast.encode_batch(texts)
            if len(encoded) != len(texts):
                raise ValueError(f"{len(encoded)} results for {len(texts)} texts")
        except BaseException as error:  # a panic in Rust code is not an Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise EncoderDiffers(
                f"{self.name} failed on a text that tokenizers encodes.", got=str(error)
            ) from None
        return encoded

    def check(
        self,
        texts: Sequence[str],
        encoded: Encoded,
        first: int,
        hashes: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Compare the first `first` texts, and one in `ONE_IN` of the others, chosen by hash."""
        if self.fast is None:
            return
        first = min(first, len(texts))
        chosen = list(range(first))
        if hashes is not None:
            chosen += (first + np.flatnonzero(hashes[first:] % ONE_IN == 0)).tolist()
        expected = self.reference.encode_batch([texts[i] for i in chosen])
        for i, wanted in zip(chosen, expected, strict=True):
            found = encoded[i].tolist()
            if found != wanted:
                got = _difference(self.reference, wanted, found)
                raise EncoderDiffers(f"{self.name} gives other ids than tokenizers.", got=got)


def _difference(reference: TextTokenizer, expected: Sequence[int], ids: Sequence[int]) -> str:
    pairs = enumerate(zip(expected, ids, strict=False))
    first = next((i for i, (left, right) in pairs if left != right), len(ids))
    around = reference.decode(expected[max(0, first - 3) : first + 5])
    part = slice(first, first + 5)
    return f"token {first}, at {around!r}: {list(ids[part])} instead of {list(expected[part])}"


def open_encoder(name: str, folder: Path) -> CheckedEncoder:
    """The encoder `name` (as `choose_encoder` gave it) for a tokenizer folder."""
    reference = load_tokenizer(folder)
    kind = name.partition(" ")[0]
    if kind == REFERENCE:
        return CheckedEncoder(reference, kind)
    opened = _opened(OPENERS[kind], folder.resolve(), reference.sha256)
    return CheckedEncoder(reference, kind, opened)


@lru_cache(maxsize=1)
def _opened(opener: Callable[[Path], Encoder], folder: Path, _: str) -> Encoder:
    """Open an encoder; cached, so that the first check and the build of one process share it."""
    return opener(folder)


def choose_encoder(setting: str, store: Path) -> str:
    """Choose and log the encoder of a store, as `NAME VERSION`.

    An encoder that differs, or does not support this tokenizer, is not chosen; if data.backend
    names it, this is a warning.

    Args:
        setting: data.backend.
        store: folder of the store, which already has its tokenizer.

    Raises ConfigError when data.backend names an encoder that is not installed.
    """
    refused = refused_encoders(store)
    stock = f"{REFERENCE} {version(REFERENCE)}"
    if setting == "hf":
        return stock
    try:
        name = f"{FASTEST} {version(FASTEST)}"
    except PackageNotFoundError:
        if setting == "auto":
            return stock
        raise ConfigError(
            f"data.backend={setting} is not installed.", fix="pip install 'wikillm[fast]'"
        ) from None
    why = refused.get(name) or _why_not(name, store / "tokenizer")
    if why is not None:
        (warn if setting != "auto" else say)(f"encoder: {name} is not used: {why}")
        return stock
    texts = len(fuzz_texts())
    say(f"encoder: {name} (compared with tokenizers on {texts} texts, and during the build)")
    return name


def refused_encoders(store: Path) -> dict[str, str]:
    """The encoders (name and version) that differed in this store, with the difference."""
    return read_object(store / REFUSED_NAME)


def refuse_encoder(store: Path, name: str, error: EncoderDiffers) -> None:
    """Record that an encoder differs, and delete the records of shards that it may have made."""
    why = f"{error.what} {error.got or ''}".strip()
    warn(f"encoder: {why}; its shards are built again with tokenizers")
    write_json(store / REFUSED_NAME, {**refused_encoders(store), name: why})
    for record in (store / "shards").glob("*.json"):
        made_by = json.loads(record.read_text(encoding="utf-8")).get("backend", REFERENCE)
        if not made_by.startswith(REFERENCE):
            record.unlink()


def _why_not(name: str, folder: Path) -> str | None:
    added = list(load_tokenizer(folder).backend.get_added_tokens_decoder().values())
    texts = fuzz_texts() + [f"a{token.content} b" for token in added[:50]]
    try:
        encoder = open_encoder(name, folder)
        encoder.check(texts, encoder.encode_batch(texts), len(texts))
    except (EncoderDiffers, Unusable) as error:
        return " ".join(part for part in (str(error.args[0]), getattr(error, "got", None)) if part)
    except ImportError as error:
        return f"it cannot be imported: {error}"
    return None


def fuzz_texts() -> list[str]:
    """Texts on which encoders have differed, and 400 random texts; NFC, equal in every call."""
    rng = random.Random(20261123)
    pieces = [
        *"  \t\n\r\u00a0\u3000\u2028\u200b\u200d\ufeff.,;!?'\"()[]{}<>|/\\_-+=*&^%$#@~`0123456789",
        *"abcxyzABCéßøÿĀſŉǅΩяעا한あ中国的，。「」①Ⅳ½٣३𠀀😀👨\u0301\u0303\u093c\u0e33\ufe0f\u202e\ue000\U0010ffff",
        *("'s", "'LL", "'ſ", "don't", "<|endoftext|>", "<|im_start|>", "</s>", "  \n\n ", "\r\n"),
        *("...", "1984", "👩‍👩‍👧", "ﬁ", "the", " of", "人民", "共和国", "data", "https://"),
        *("\u1100\u1161\u11a8", "é\u0327", "İi", "ΐΰ", "\U0001f1e8\U0001f1f3"),
    ]
    texts = ["", " ", "\n", "a", "中" * 600, "ab" * 400, " " * 300, "\n \n" * 99]
    texts += ["1" * 70, "'" * 40, "é" * 99]
    texts += ["".join(rng.choices(pieces, k=rng.randint(1, 80))) for _ in range(300)]
    anything = [*range(0x20, 0x3000), *range(0x4E00, 0x9FFF, 7)]
    anything += [*range(0xAC00, 0xD7A3, 11), *range(0xF900, 0x1FAFF, 5)]
    texts += ["".join(map(chr, rng.choices(anything, k=60))) for _ in range(100)]
    return [unicodedata.normalize("NFC", text) for text in texts]


class _Fastokens:
    def __init__(self, folder: Path) -> None:
        import fastokens

        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        try:
            self._inner = fastokens.Tokenizer.from_json_str(content)
        except Exception as error:  # the library documents no type
            raise Unusable(f"it cannot open this tokenizer.json: {error}") from None
        self._inner.no_truncation()
        self._inner.no_padding()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        if not texts:
            return Encoded.of([])
        ids, ends = self._inner.encode_batch_flat(list(texts), False, True)
        return Encoded(np.frombuffer(ids, "<u4"), np.frombuffer(ends, "<u8").astype(np.int64))


OPENERS: dict[str, Callable[[Path], Encoder]] = {FASTEST: _Fastokens}
