"""Look into a finished store: lengths, the n-th document, the n-th sample, each with its place in the sources.

Read only, without torch. Memory is 4 bytes a document for the lengths and one index entry a document, mapped, for the
places. A sample is found as in training (`order.py`): by seed, sequence length and shards per window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.config.schema import Packing
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import sha256_file
from wikillm.data.read.stored import StoredCorpus
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.data.store.store import SPLITS, Store, TokenStream, shard_path

_BAR = 40  # characters of the longest bar of a histogram
_EXCERPT = 2000  # characters of a text that is shown


@dataclass(frozen=True, slots=True)
class Place:
    """A document and where it came from. `first` and `end` are its tokens in the stream of its split, EOS included."""

    document: int
    first: int
    end: int
    source: str
    offset: int  # of its record, in bytes of the decompressed source
    content_hash: str
    text_bytes: int


class Documents:
    """The documents of one split by number and by position."""

    def __init__(self, store: Store, stream: TokenStream) -> None:
        self._sources = store.manifest.sources
        self._indexes = list(stream.indexes())
        counts = np.cumsum([0, *(len(index) for index in self._indexes)])
        tokens = np.cumsum([0, *(int(index["end"][-1]) for index in self._indexes)])
        self._first_document, self._first_token = counts.tolist(), tokens.tolist()

    def __len__(self) -> int:
        return int(self._first_document[-1])

    def __getitem__(self, number: int) -> Place:
        """The document `number`, counted from 0. Raises DataError when there is none."""
        if not 0 <= number < len(self):
            raise DataError(
                "There is no such document.",
                got=f"{number}",
                fix=f"a number from 0 to {len(self) - 1}",
            )
        shard = bisect_right(self._first_document, number) - 1
        index, row = self._indexes[shard], number - self._first_document[shard]
        entry, before = index[row], int(index["end"][row - 1]) if row else 0
        return Place(
            document=number,
            first=self._first_token[shard] + before,
            end=self._first_token[shard] + int(entry["end"]),
            source=self._sources[int(entry["source"])].path,
            offset=int(entry["offset"]),
            content_hash=f"{int(entry['hash']):016x}",
            text_bytes=int(entry["text_bytes"]),
        )

    def at(self, token: int) -> int:
        """The number of the document that token `token` belongs to."""
        shard = bisect_right(self._first_token, token) - 1
        row = int(
            np.searchsorted(
                self._indexes[shard]["end"], token - self._first_token[shard], side="right"
            )
        )
        return int(self._first_document[shard]) + row

    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each document, EOS included."""
        every = [
            np.diff(index["end"], prepend=np.uint64(0)).astype(np.uint32) for index in self._indexes
        ]
        return np.concatenate([np.empty(0, dtype=np.uint32), *every])


def stats_of(store: Store) -> dict[str, Any]:
    """Counts, lengths, copies and the funnel of a store, for programs."""
    manifest = store.manifest
    return {
        "store": str(store.dir),
        "fingerprint": manifest.fingerprint,
        "backend": manifest.backend,
        "tokenizer": asdict(manifest.tokenizer),
        "shards": len(manifest.shards),
        "duplicates": manifest.duplicates,
        "funnel": {**asdict(manifest.funnel), "read_records": manifest.funnel.read_records},
        "splits": {name: _split_stats(store, getattr(store, name)) for name in SPLITS},
    }


def _split_stats(store: Store, stream: TokenStream) -> dict[str, Any]:
    lengths = Documents(store, stream).lengths()
    if not len(lengths):
        return {"documents": 0, "tokens": 0, "text_bytes": 0}
    bins = np.bincount(np.floor(np.log2(lengths)).astype(np.int64))
    return {
        "documents": stream.n_documents,
        "tokens": stream.n_tokens,
        "text_bytes": stream.text_bytes,
        "bytes_per_token": stream.text_bytes / stream.n_tokens,
        "length": {
            "least": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "p99": float(np.percentile(lengths, 99)),
            "most": int(lengths.max()),
        },
        "histogram": [
            {"from": 2**i, "below": 2 ** (i + 1), "documents": int(n)}
            for i, n in enumerate(bins)
            if bins[: i + 1].any()
        ],
    }


def stats_text(store: Store) -> str:
    """The same as lines for the terminal."""
    found = stats_of(store)
    lines = [
        f"store      {store.dir}  (fingerprint {store.manifest.fingerprint[:12]}, {found['shards']} shards)"
    ]
    lines.append(f"encoder    {found['backend']['name']} {found['backend']['version']}")
    copies = found["duplicates"]
    lines.append(
        f"copies     {'not counted' if copies is None else f'{copies:,} documents are copies of others'}"
    )
    for name, split in found["splits"].items():
        lines += ["", f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens"]
        if split["documents"]:
            length = split["length"]
            lines[-1] += (
                f", {split['text_bytes'] / 1e6:.2f} MB of text, {split['bytes_per_token']:.2f} bytes/token"
            )
            lines.append(
                f"tokens per document: least {length['least']:,}, median {length['median']:,.0f}, "
                f"mean {length['mean']:,.0f}, 99 % below {length['p99']:,.0f}, most {length['most']:,}"
            )
            lines += _bars(split["histogram"])
    return "\n".join([*lines, "", store.manifest.funnel.table()])


def _bars(histogram: list[dict[str, int]]) -> Iterator[str]:
    most = max(bin["documents"] for bin in histogram)
    for bin in histogram:
        bar = "#" * -(-bin["documents"] * _BAR // most)
        yield f"{bin['from']:>9,} - {bin['below'] - 1:>9,}  {bin['documents']:>10,}  {bar}".rstrip()


def show_document(store: Store, split: str, number: int) -> dict[str, Any]:
    """The document `number` of a split: its place, ids and text (without EOS)."""
    stream = getattr(store, split)
    place = Documents(store, stream)[number]
    ids = stream.read(place.first, place.end)
    return {
        "split": split,
        **asdict(place),
        "ids": ids.tolist(),
        "text": store.tokenizer().decode(ids[:-1].tolist()),
    }


def show_sample(
    store: Store,
    number: int,
    *,
    sequence_length: int,
    seed: int,
    window_shards: int,
    packing: Packing = "concat",
) -> dict[str, Any]:
    """Sample `number` of training: the targets in it, in order, by document, and the text they make."""
    if number < 0 or sequence_length < 1:
        raise ConfigError(
            "A sample is counted from 0, and its length from 1.", got=f"{number}, {sequence_length}"
        )
    stream = store.train
    order = StoredCorpus(store, window_shards, packing).order(sequence_length, seed)
    documents, tokenizer = Documents(store, stream), store.tokenizer()
    parts: list[dict[str, Any]] = []
    for start, stop in order.target_ranges([number])[0]:
        at, end = start + 1, stop + 1  # target t is token t + 1
        while at < end:
            place = documents[documents.at(at)]
            upto = min(end, place.end)
            text = tokenizer.decode(stream.read(at, upto).tolist())
            parts.append({**asdict(place), "tokens": [at, upto], "text": text})
            at = upto
    return {
        "sample": number,
        "sequence_length": sequence_length,
        "seed": seed,
        "targets": sum(part["tokens"][1] - part["tokens"][0] for part in parts),
        "parts": parts,
    }


def show_text(found: dict[str, Any]) -> str:
    """A document or a sample as lines for the terminal; long texts are cut."""
    lines = []
    if "parts" in found:
        lines.append(f"sample {found['sample']}, seed {found['seed']}: {found['targets']} targets")
    for part in found.get("parts", [found]):
        first, end = part.get("tokens", (part["first"], part["end"]))
        lines += [
            "",
            f"document {part['document']:,}, tokens {first - part['first']} to {end - part['first']} of it",
        ]
        lines.append(
            f"{part['source']}: byte {part['offset']:,}  ({part['text_bytes']:,} bytes, {part['content_hash']})"
        )
        text = part["text"]
        lines.append(
            text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]} ... ({len(text):,} characters)"
        )
    return "\n".join(lines).lstrip()


def verify(store: Store) -> dict[str, Any]:
    """Read every file and compare its sha256 with the manifest's. Raises DataError naming the first that differs."""
    store.verify(full=True)
    paths = [
        shard_path(store.dir, split, shard.number, kind)
        for shard in store.manifest.shards
        for split in shard.splits
        for kind in ("tok", "idx")
    ]
    size = sum(path.stat().st_size for path in paths)
    digest = sha256_file(store.dir / MANIFEST_NAME)
    return {
        "store": str(store.dir),
        "files": len(paths) + 1,
        "bytes": size,
        "manifest_sha256": digest,
    }


def find_store(named: str | None) -> Path:
    """The folder that was named, or the newest finished store in `stores/`."""
    if named is not None:
        return Path(named)
    found = sorted(Path("stores").glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(
            "There is no token store in stores/.",
            got=str(Path.cwd()),
            fix="wikillm prepare, or name a folder",
        )
    return found[-1].parent
