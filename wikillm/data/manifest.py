"""What a token store says about itself: `manifest.json`, written last, so that a store without it is unfinished.

The fingerprint is the sha256 of the facts that decide every byte of the shards; the same facts give the same
bytes on any machine with any number of workers. Paths and the origin of the tokenizer are kept for the reader and
decide nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wikillm.core.errors import DataError
from wikillm.data.funnel import Funnel
from wikillm.data.sources.read import Cursor

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    name: str
    origin: str
    sha256: str  # of tokenizer.json
    length: int  # highest id + 1
    eos_id: int
    eos_token: str


@dataclass(frozen=True, slots=True)
class SourceInfo:
    path: str
    size: int
    sha256: str
    format: str
    compression: str
    url: str = ""  # where it was downloaded from; `path` is then its place in a cache
    version: str = ""  # ETag of the server, revision of the hub


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """A split as a whole. `text_bytes` is UTF-8 text, without what EOS stands for."""

    tokens: int
    documents: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class ShardSplit:
    """One split's part of a shard: NNNNN.tok and NNNNN.idx."""

    tokens: int
    documents: int
    text_bytes: int
    tok_sha256: str
    idx_sha256: str


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """`start` and `end` are where its records lie in the sources; `is_cut`: data.max_text_bytes ended it early.

    `backend` is the library that encoded it, with its version.
    """

    number: int
    start: Cursor
    end: Cursor
    is_cut: bool
    funnel: Funnel
    splits: dict[str, ShardSplit]
    backend: str = "tokenizers"

    @property
    def text_bytes(self) -> int:
        return sum(split.text_bytes for split in self.splits.values())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardInfo:
        return cls(
            number=value["number"],
            start=Cursor(**value["start"]),
            end=Cursor(**value["end"]),
            is_cut=value["is_cut"],
            funnel=Funnel.from_json(value["funnel"]),
            splits={name: ShardSplit(**split) for name, split in value["splits"].items()},
            backend=value.get("backend", "tokenizers"),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """`duplicates` counts documents whose text occurred before; None when there were too many to count."""

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Raises DataError for another format version, KeyError or TypeError for a damaged manifest."""
        if value.get("format_version") != FORMAT_VERSION:
            raise DataError(
                "A token store has another format version.",
                got=f"{value.get('format_version')}, this program reads {FORMAT_VERSION}",
                fix="build it again: remove the folder, or name another one in data.store",
            )
        return cls(
            fingerprint=value["fingerprint"],
            facts=value["facts"],
            tokenizer=TokenizerInfo(**value["tokenizer"]),
            backend=value["backend"],
            sources=tuple(SourceInfo(**source) for source in value["sources"]),
            shard_bytes=value["shard_bytes"],
            stopped_at_text_limit=value["stopped_at_text_limit"],
            duplicates=value["duplicates"],
            funnel=Funnel.from_json(value["funnel"]),
            splits={name: SplitInfo(**split) for name, split in value["splits"].items()},
            shards=tuple(ShardInfo.from_json(shard) for shard in value["shards"]),
        )


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """sha256 over the facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other_facts(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise DataError when a store was made from other facts, naming each that differs."""
    names = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
    if not names:
        return
    lines = [
        f"{name}: the store has {_short(stored.get(name))}, this run wants {_short(wanted.get(name))}" for name in names
    ]
    raise DataError(
        "The token store was made from something else.",
        got=f"{folder}\n" + "\n".join(lines),
        fix=f"data.store=ANOTHER_FOLDER, or leave data.store out; or remove it and build anew: rm -r {folder}",
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."
