"""Faster encoders for the build, each behind a gate of equality with the `tokenizers` library, which is the truth.

`fastokens` and `tiktoken` (the extra `fast`) are optional. Before a build one of them must give the ids of `tokenizers`
for every text of a fuzz set; during it, for the first documents, the first of each shard and one in a thousand. The
first difference refuses that backend for this store for good: what it made is built again with `tokenizers`; a run
that has been training on it is ended (`build.build_store`). So a
finished store holds either shards of backends of which no difference was ever seen, or shards of `tokenizers` only,
and the fingerprint does not know about backends. Text is encoded as ordinary text, a literal special token included.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import write_json
from wikillm.core.log import say, warn
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer

TRUTH = "tokenizers"
FASTEST_FIRST = ("fastokens", "tiktoken")
FIRST_DOCUMENTS, ONE_IN = 64, 1000
CHECKED_BEFORE_TRAINING = 512  # first documents of a store that a run reads while it grows: a later difference ends the run
REFUSED_NAME = "refused_backends.json"

Ids = Sequence[int] | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of several texts one after the other: text i has `ids[ends[i]:ends[i + 1]]`."""

    ids: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[Ids]) -> Encoded:
        ends = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=ends[1:])
        ids = np.fromiter(chain.from_iterable(parts), dtype=np.uint32, count=int(ends[-1]))
        return cls(ids, ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, text: int) -> npt.NDArray[np.uint32]:
        return self.ids[self.ends[text] : self.ends[text + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint32]]:
        return (self[text] for text in range(len(self)))

    def with_last(self, token: int) -> Encoded:
        """The same with one more id at the end of each text."""
        ends = self.ends + np.arange(len(self.ends))
        is_text = np.ones(int(ends[-1]), dtype=bool)
        is_text[ends[1:] - 1] = False
        ids = np.full(len(is_text), token, dtype=np.uint32)
        ids[is_text] = self.ids
        return Encoded(ids, ends)


class Backend(Protocol):
    def encode_batch(self, texts: Sequence[str]) -> Sequence[Ids] | Encoded:
        """Ids of each of some NFC texts, as ordinary text."""
        ...


class BackendDiffers(DataError):
    """A backend gave other ids than `tokenizers`, or failed; never seen by a user: the build goes on without it."""


class Unusable(Exception):
    """This backend cannot do what this tokenizer.json asks for."""


@dataclass(frozen=True, slots=True)
class CheckedEncoder:
    """Encodes with a backend and compares samples of it with the truth. Raises BackendDiffers."""

    truth: TextTokenizer
    name: str
    backend: Backend

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, of which `check` has to hear next."""
        if self.name == TRUTH:
            return Encoded.of(self.truth.encode_batch(texts))
        try:
            found_all = self.backend.encode_batch(texts)
            encoded = found_all if isinstance(found_all, Encoded) else Encoded.of(found_all)
            if len(encoded) != len(texts):
                raise ValueError(f"{len(encoded)} answers for {len(texts)} texts")
        except BaseException as error:  # a panic of Rust code is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BackendDiffers(
                f"{self.name} failed where tokenizers does not.", got=str(error)
            ) from None
        return encoded

    def check(
        self,
        texts: Sequence[str],
        encoded: Encoded,
        first: int,
        hashes: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Compare the first texts and, by their hashes, one in `ONE_IN` of the others with the truth."""
        if self.name == TRUTH:
            return
        first = min(first, len(texts))
        chosen = list(range(first))
        if hashes is not None:
            chosen += (first + np.flatnonzero(hashes[first:] % ONE_IN == 0)).tolist()
        for i, wanted in zip(
            chosen, self.truth.encode_batch([texts[i] for i in chosen]), strict=True
        ):
            found = encoded[i].tolist()
            if found != wanted:
                raise BackendDiffers(
                    f"{self.name} gives other ids than tokenizers.",
                    got=_difference(self.truth, wanted, found),
                )


def _difference(truth: TextTokenizer, wanted: Sequence[int], found: Sequence[int]) -> str:
    same = next(
        (i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]),
        len(found),
    )
    around = truth.decode(wanted[max(0, same - 3) : same + 5])
    return f"token {same}, at {around!r}: {list(found[same : same + 5])} instead of {list(wanted[same : same + 5])}"


def open_encoder(name: str, folder: Path) -> CheckedEncoder:
    """The encoder `name` (as `choose_backend` gave it) for a tokenizer folder."""
    truth = load_tokenizer(folder)
    kind = name.partition(" ")[0]
    return CheckedEncoder(
        truth,
        kind,
        truth if kind == TRUTH else _opened(OPENERS[kind], folder.resolve(), truth.sha256),
    )


@lru_cache(maxsize=1)
def _opened(opener: Callable[[Path], Backend], folder: Path, _: str) -> Backend:
    """Opened once by the gate and for the build, where both are one process."""
    return opener(folder)


def choose_backend(setting: str, store: Path) -> str:
    """`NAME VERSION` of the encoder that builds a store, in whose folder its tokenizer stands; says so.

    `setting` is data.backend. Raises ConfigError when a backend that was named is not installed. One that differs
    or cannot do this tokenizer is left out, with a warning when it was named.
    """
    refused = refused_backends(store)
    for kind in {"auto": FASTEST_FIRST, "hf": ()}.get(setting, (setting,)):
        try:
            name = f"{kind} {version(kind)}"
        except PackageNotFoundError:
            if setting == "auto":
                continue
            raise ConfigError(
                f"data.backend={setting} is not installed.",
                fix=f"pip install 'wikillm[fast]', or pip install {kind}",
            ) from None
        why = refused.get(name) or _why_not(name, store / "tokenizer")
        if why is None:
            say(
                f"encoder: {name}, compared with tokenizers on {len(fuzz_texts())} texts, and as it goes"
            )
            return name
        (warn if setting != "auto" else say)(f"encoder: not {name}: {why}")
    return f"{TRUTH} {version(TRUTH)}"


def refused_backends(store: Path) -> dict[str, str]:
    """The encoders, with their versions, that differed in this store, and how."""
    path = store / REFUSED_NAME
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def refuse_backend(store: Path, name: str, error: BackendDiffers) -> None:
    """Remember that a backend differs, and take away the records of the shards that others than the truth made."""
    why = f"{error.what} {error.got or ''}".strip()
    warn(f"encoder: {why}; its shards are built again with tokenizers")
    write_json(store / REFUSED_NAME, {**refused_backends(store), name: why})
    for record in (store / "shards").glob("*.json"):
        if (
            not json.loads(record.read_text(encoding="utf-8"))
            .get("backend", TRUTH)
            .startswith(TRUTH)
        ):
            record.unlink()


def _why_not(name: str, folder: Path) -> str | None:
    added = load_tokenizer(folder).backend.get_added_tokens_decoder().values()
    texts = fuzz_texts() + [
        f"a{token.content} b" for token in list(added)[:50]
    ]  # this tokenizer's own
    try:
        encoder = open_encoder(name, folder)
        encoder.check(texts, encoder.encode_batch(texts), len(texts))
    except (BackendDiffers, Unusable) as error:
        return " ".join(part for part in (str(error.args[0]), getattr(error, "got", None)) if part)
    except ImportError as error:
        return f"it cannot be imported: {error}"
    return None


def fuzz_texts() -> list[str]:
    """Texts on which encoders were seen to differ, and 400 random mixtures; NFC, the same on every call."""
    rng = random.Random(20261123)
    pieces = [
        *"  \t\n\r\u00a0\u3000\u2028\u200b\u200d\ufeff.,;!?'\"()[]{}<>|/\\_-+=*&^%$#@~`0123456789",
        *"abcxyzABCéßøÿĀſŉǅΩяעا한あ中国的，。「」①Ⅳ½٣३𠀀😀👨\u0301\u0303\u093c\u0e33\ufe0f\u202e\ue000\U0010ffff",
        *("'s", "'LL", "'ſ", "don't", "<|endoftext|>", "<|im_start|>", "</s>", "  \n\n ", "\r\n", "...", "1984", "👩‍👩‍👧", "ﬁ"),
        *("the", " of", "人民", "共和国", "data", "https://", "\u1100\u1161\u11a8", "é\u0327", "İi", "ΐΰ", "\U0001f1e8\U0001f1f3"),
    ]  # fmt: skip
    texts = [
        "",
        " ",
        "\n",
        "a",
        "中" * 600,
        "ab" * 400,
        " " * 300,
        "\n \n" * 99,
        "1" * 70,
        "'" * 40,
        "é" * 99,
    ]
    texts += ["".join(rng.choices(pieces, k=rng.randint(1, 80))) for _ in range(300)]
    anything = [
        *range(0x20, 0x3000),
        *range(0x4E00, 0x9FFF, 7),
        *range(0xAC00, 0xD7A3, 11),
        *range(0xF900, 0x1FAFF, 5),
    ]
    texts += ["".join(map(chr, rng.choices(anything, k=60))) for _ in range(100)]
    return [unicodedata.normalize("NFC", text) for text in texts]


class _Fastokens:
    def __init__(self, folder: Path) -> None:
        import fastokens

        try:
            self._inner = fastokens.Tokenizer.from_json_str(
                (folder / "tokenizer.json").read_text(encoding="utf-8")
            )
        except Exception as error:  # the library raises what it likes
            raise Unusable(f"it does not open this tokenizer.json: {error}") from None
        self._inner.no_truncation()
        self._inner.no_padding()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        if not texts:
            return Encoded.of([])
        ids, ends = self._inner.encode_batch_flat(list(texts), False, True)
        return Encoded(np.frombuffer(ids, "<u4"), np.frombuffer(ends, "<u8").astype(np.int64))


class _Tiktoken:
    def __init__(self, folder: Path) -> None:
        import tiktoken

        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        pattern, ranks = _byte_pairs(content)
        try:
            self._inner = tiktoken.Encoding(
                "wikillm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except Exception as error:
            raise Unusable(f"it does not take this vocabulary: {error}") from None

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        return [self._inner.encode_to_numpy(text, disallowed_special=()) for text in texts]


OPENERS: dict[str, Callable[[Path], Backend]] = {"fastokens": _Fastokens, "tiktoken": _Tiktoken}


def _byte_pairs(content: dict[str, Any]) -> tuple[str, dict[bytes, int]]:
    """Pattern and ranks of a byte-level BPE over NFC text. tiktoken merges by id, so ids must follow the merges."""
    model, normalizer, splitter = (
        content["model"],
        content.get("normalizer"),
        content.get("pre_tokenizer") or {},
    )
    split, level = (splitter.get("pretokenizers") or [{}, {}])[:2]
    is_plain = (
        model.get("type") == "BPE"
        and not any(
            model.get(key) for key in ("dropout", "byte_fallback", "continuing_subword_prefix")
        )
        and (normalizer is None or normalizer == {"type": "NFC"})
        and (split.get("type"), split.get("behavior"), split.get("invert"))
        == ("Split", "Isolated", False)
        and (level.get("type"), level.get("add_prefix_space"), level.get("use_regex"))
        == ("ByteLevel", False, False)
        and len(splitter["pretokenizers"]) == 2
        and "Regex" in split["pattern"]
        and all(token["special"] for token in content.get("added_tokens", []))
    )
    if not is_plain:
        raise Unusable("it knows byte-level BPE with one regular expression and NFC only")
    vocabulary: dict[str, int] = model["vocab"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    ids = [vocabulary["".join(pair)] for pair in merges]
    if any(later <= earlier for earlier, later in zip(ids, ids[1:], strict=False)):
        raise Unusable("the ids of this vocabulary do not follow its merges")
    specials = {token["content"] for token in content.get("added_tokens", [])}
    letters = _byte_letters()
    return split["pattern"]["Regex"], {
        bytes(letters[letter] for letter in token): rank
        for token, rank in vocabulary.items()
        if token not in specials
    }


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte (GPT-2): itself if printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
