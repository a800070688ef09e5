"""The manifest of a token store: `manifest.json`, written last; without it a store is unfinished.

The fingerprint is the sha256 of the facts that decide every byte of the shards. Equal facts give
equal bytes on any machine with any number of workers. The manifest also has paths and the origin of
the tokenizer, which are not part of the facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from wikillm.core.errors import DataError
from wikillm.data.funnel import Funnel, merged
from wikillm.data.sources.fixes import set_aside
from wikillm.data.sources.read import ShardRange
from wikillm.data.tokenizer.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_KNOWN_KEYS = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    __pydantic_config__ = _KNOWN_KEYS
    name: str
    origin: str
    sha256: str  # of tokenizer.json
    length: int  # highest id + 1
    eos_id: int
    eos_token: str

    @classmethod
    def of(cls, tokenizer: TextTokenizer, *, name: str, origin: str) -> TokenizerInfo:
        length = tokenizer.length
        eos_id = tokenizer.eos_id
        return cls(name, origin, tokenizer.sha256, length, eos_id, tokenizer.eos_token)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    __pydantic_config__ = _KNOWN_KEYS
    path: str
    size: int
    sha256: str
    format: str
    compression: str
    url: str = ""  # address of a downloaded source; its `path` is in a cache
    version: str = ""  # ETag of the server, or revision on the hub


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """Sizes of a split. `text_bytes`: size of its text in UTF-8, without EOS."""

    __pydantic_config__ = _KNOWN_KEYS
    tokens: int
    documents: int
    text_bytes: int

    @staticmethod
    def sum(parts: Iterable[SplitInfo]) -> SplitInfo:
        every = list(parts)
        return SplitInfo(
            tokens=sum(part.tokens for part in every),
            documents=sum(part.documents for part in every),
            text_bytes=sum(part.text_bytes for part in every),
        )


@dataclass(frozen=True, slots=True)
class ShardSplit(SplitInfo):
    """The part of a split that is in one shard: NNNNN.tok and NNNNN.idx."""

    tok_sha256: str
    idx_sha256: str


@dataclass(frozen=True, slots=True)
class ShardInfo(ShardRange):
    """The record of a shard.

    Attributes:
        is_cut: whether data.max_text_bytes ended the shard.
        backend: library that encoded it, with version.
    """

    is_cut: bool
    funnel: Funnel
    splits: dict[str, ShardSplit]
    backend: str = "tokenizers"

    @property
    def text_bytes(self) -> int:
        return sum(split.text_bytes for split in self.splits.values())

    @classmethod
    def read(cls, path: Path) -> ShardInfo:
        """Read the record of a shard, without its list of bad records.

        Raises OSError, or ValueError for a damaged file.
        """
        info: ShardInfo = _read(cls, path.read_bytes())
        _check_splits(info.splits, f"shard {info.number}")
        return info


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        duplicates: number of documents that repeat an earlier text; None if there are too many
            documents to compare.
    """

    __pydantic_config__ = _KNOWN_KEYS
    fingerprint: str
    facts: dict[str, Any]
    tokenizer: TokenizerInfo
    backend: dict[str, str]
    sources: tuple[SourceInfo, ...]
    shard_bytes: int
    stopped_at_text_limit: bool
    duplicates: int | None
    funnel: Funnel
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        shards: Sequence[ShardInfo],
        *,
        facts: dict[str, Any],
        tokenizer: TokenizerInfo,
        backend: dict[str, str],
        sources: tuple[SourceInfo, ...],
        shard_bytes: int,
        duplicates: int | None = None,
    ) -> Manifest:
        """The manifest of a store with these shards."""
        return cls(
            fingerprint=fingerprint_of(facts),
            facts=facts,
            tokenizer=tokenizer,
            backend=backend,
            sources=sources,
            shard_bytes=shard_bytes,
            stopped_at_text_limit=any(shard.is_cut for shard in shards),
            duplicates=duplicates,
            funnel=merged(shard.funnel for shard in shards),
            splits={
                split: SplitInfo.sum(shard.splits[split] for shard in shards)
                for split in ("train", "val")
            },
            shards=tuple(shards),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Parse manifest.json.

        Raises DataError for another format version, ValueError for a damaged manifest.
        """
        value = orjson.loads(content)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION or type(version) is not int:
            raise DataError(
                "A token store has an unknown format version, or none.",
                got=f"{_short(version)}; this version of WikiLLM reads {FORMAT_VERSION}",
                fix="build the store again: remove its folder, or set data.store to another folder",
            )
        manifest: Manifest = _read(cls, content)
        _check_numbers({**value, "facts": None})
        _check(manifest)
        return manifest


def _read(kind: Any, content: bytes) -> Any:
    """Parse JSON into a dataclass and check every field's type, as the file may be from anyone.

    Raises ValueError that names the first field of a wrong type.
    """
    from pydantic import ValidationError

    try:
        return _reader(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}, got {_short(first['input'])}") from None


def _check_numbers(value: Any, place: str = "") -> None:
    """Raise ValueError for a number that is negative or has more than 63 bits."""
    if isinstance(value, int) and not 0 <= value < 2**63:
        raise ValueError(f"{place[1:]}: {value} is not a size, count or position")
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(inner, f"{place}.{key}")


@lru_cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _check(manifest: Manifest) -> None:
    """Check that the values of a manifest agree with each other. Raises ValueError."""
    tokenizer = manifest.tokenizer
    fraction = manifest.facts.get("data.val_fraction")
    if not 0 < tokenizer.length <= 2**32:
        raise ValueError(f"tokenizer.length: {tokenizer.length} is not a number of token ids")
    if not 0 <= tokenizer.eos_id < tokenizer.length:
        raise ValueError(
            f"tokenizer.eos_id: {tokenizer.eos_id} is outside the vocabulary of {tokenizer.length}"
        )
    if type(fraction) is not float or not 0 < fraction < 1:
        raise ValueError(
            f"facts.data.val_fraction: {_short(fraction)} is not a share between 0 and 1"
        )
    if set(manifest.backend) != {"name", "version"}:
        names = ", ".join(sorted(manifest.backend)) or "no keys"
        raise ValueError(f"backend: it has {names} instead of name and version")
    # Shards are numbered without gaps, and their counts agree with their funnels.
    if not manifest.shards:
        raise ValueError("shards: a finished store has at least one, the manifest lists none")
    for number, shard in enumerate(manifest.shards):
        if shard.number != number:
            raise ValueError(f"shards[{number}].number: it is {shard.number}")
        _check_splits(shard.splits, f"shards[{number}]")
        documents = sum(split.documents for split in shard.splits.values())
        if shard.funnel.kept_records != documents:
            kept = f"{shard.funnel.kept_records} records were kept"
            raise ValueError(
                f"shards[{number}].funnel: {kept}, but there are {documents} documents"
            )
    # Funnel and splits are the sums over the shards.
    if manifest.funnel != merged(shard.funnel for shard in manifest.shards):
        raise ValueError("funnel: it is not the sum of the shards' funnels")
    _check_splits(manifest.splits, "splits")
    for name, split in manifest.splits.items():
        total = SplitInfo.sum(shard.splits[name] for shard in manifest.shards)
        if split != total:
            raise ValueError(f"splits.{name}: {split}, but the shards sum to {total}")


def _check_splits(splits: Mapping[str, SplitInfo], place: str) -> None:
    if set(splits) != {"train", "val"}:
        raise ValueError(f"{place}: its splits are {', '.join(sorted(splits))}")
    for name, split in splits.items():
        if not 0 <= split.documents <= split.tokens or (split.tokens and not split.documents):
            raise ValueError(
                f"{place}: {name} cannot have {split.documents} documents and {split.tokens} tokens"
            )


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """sha256 over the facts as canonical JSON."""
    text = json.dumps(
        facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], made_with: str, needs: str
) -> list[str]:
    """One line for each fact that differs."""
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return [
        f"{name}: {made_with} {_short(then.get(name))}, {needs} {_short(now.get(name))}"
        for name in names
    ]


def refuse_other_facts(folder: Path, stored: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Raise DataError when a store was made from other facts; it names each fact that differs."""
    lines = differences(stored, needed, "the store has", "this run needs")
    if lines:
        raise DataError(
            "The token store was made from other sources or settings.",
            got="\n".join([str(folder), *lines]),
            fix=f"set data.store to another folder, or leave it out; or {set_aside(folder)}",
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."
