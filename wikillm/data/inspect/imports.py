"""Import tokens of other tools as a store: Megatron's .bin/.idx, datatrove's .ds (see `exports`).

The tokenizer that made them must be named, since neither format holds it; every id must lie in its
vocabulary. Texts are decoded, so that each document gets the content hash, and goes into the split,
that it would have had as text. EOS is added where a document has none. The store is a finished one
without sources: `data.store=FOLDER` without `data.path` uses it.
"""

from __future__ import annotations

import shutil
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import STAGING_SUFFIX, rename_durably, sha256_file, write_json
from wikillm.core.log import warn
from wikillm.data.filters.documents import content_hash
from wikillm.data.funnel import Tally
from wikillm.data.inspect.exports import MEGATRON_MAGIC
from wikillm.data.sources.read import Cursor
from wikillm.data.store.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardInfo,
    SourceInfo,
    TokenizerInfo,
)
from wikillm.data.store.store import SPLITS, Store
from wikillm.data.store.writer import SplitWriter, shard_record_path
from wikillm.data.tokenizer.tokenizer import TextTokenizer, copy_tokenizer, load_tokenizer
from wikillm.data.types import TokenizedDocument

SHARD_TOKENS = 1 << 24  # 64 MiB
_BATCH_DOCUMENTS = 256
# 6 and 7 are floating point
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

Ids = npt.NDArray[Any]


def import_store(
    kind: str, files: Sequence[Path], tokenizer_folder: Path, target: Path, val_fraction: float
) -> Store:
    """Write the documents of `files`, in order, as a store at `target`; it appears complete.

    Raises DataError for damaged files and ids beyond the vocabulary, ConfigError when `target`
    exists.
    """
    if target.exists():
        raise ConfigError(
            "The import would overwrite something.", got=str(target), fix="--out ANOTHER_FOLDER"
        )
    if not 0 < val_fraction < 1:
        raise ConfigError("--val-fraction must be a share between 0 and 1.", got=str(val_fraction))
    tokenizer = load_tokenizer(tokenizer_folder)
    readers = [(_Megatron if kind == "megatron" else _Datatrove)(path) for path in files]
    staged = target.with_name(f".{target.name}{STAGING_SUFFIX}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        copy_tokenizer(tokenizer_folder, staged / "tokenizer")
        shards = _Importer(staged, tokenizer, val_fraction, readers).shards()
        name = tokenizer_folder.absolute().name
        origin = str(tokenizer_folder)
        info = TokenizerInfo.of(tokenizer, name=name, origin=origin)
        _describe(staged, kind, readers, info, val_fraction, shards)
        rename_durably(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Store.open(target)


class _Megatron:
    """PREFIX.bin and PREFIX.idx. A document is one or more sequences."""

    def __init__(self, path: Path) -> None:
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        self.path = prefix.with_name(prefix.name + ".bin")
        index = _content(prefix.with_name(prefix.name + ".idx"))
        if not index.startswith(MEGATRON_MAGIC) or len(index) < 34:
            raise _damaged(self.path, "its .idx does not begin like Megatron's")
        version, code, sequences, borders = struct.unpack_from("<QBQQ", index, 9)
        if version != 1 or code not in _MEGATRON_TYPES:
            what = f"its .idx has version {version} and type {code}: neither tokens nor version 1"
            raise _damaged(self.path, what)
        size = 34 + 12 * sequences + 8 * borders
        if len(index) != size:
            what = f"its .idx has {len(index)} bytes instead of {size}"
            if len(index) == size + sequences:
                what += " (one mode per sequence: a multimodal file?)"
            raise _damaged(self.path, what)
        self._lengths = np.frombuffer(index, "<i4", sequences, 34)
        self._offsets = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
        self._borders = np.frombuffer(index, "<i8", borders, 34 + 12 * sequences)
        self._dtype = np.dtype(_MEGATRON_TYPES[code])
        self._tokens = _mapped(self.path, np.dtype("u1"))
        ends = self._offsets + self._lengths.astype(np.int64) * self._dtype.itemsize
        in_order = not borders or (self._borders[0] == 0 and self._borders[-1] == sequences)
        is_outside = (self._lengths < 0) | (self._offsets < 0) | (ends > len(self._tokens))
        if not in_order or (np.diff(self._borders) < 0).any() or is_outside.any():
            raise _damaged(self.path, f"its .idx points outside: {len(self._tokens)} bytes in .bin")

    def documents(self) -> Iterator[tuple[int, Ids]]:
        """Each document's byte in .bin, and its ids."""
        for low, high in pairwise(self._borders.tolist()):
            offset = int(self._offsets[low]) if low < high else 0
            parts = [self._sequence(number) for number in range(low, high)]
            yield offset, np.concatenate([np.empty(0, self._dtype), *parts])

    def _sequence(self, number: int) -> Ids:
        start = int(self._offsets[number])
        size = int(self._lengths[number]) * self._dtype.itemsize
        return self._tokens[start : start + size].view(self._dtype)


class _Datatrove:
    """FILE.ds and FILE.ds.index; the size of a token follows from both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path.with_name(path.name + ".index")
        content = _content(index)
        if len(content) % 8:
            what = f"{index.name} has {len(content)} bytes, which is not a multiple of 8"
            raise _damaged(path, what)
        self._ends = np.frombuffer(content, "<u8").astype(np.int64)
        total = int(self._ends[-1]) if len(self._ends) else 0
        size = path.stat().st_size if path.is_file() else 0
        if (np.diff(self._ends, prepend=0) < 0).any() or size not in (2 * total, 4 * total):
            what = f"{size} bytes, where {index.name} indexes {total} tokens of 2 or 4 bytes"
            raise _damaged(path, what)
        self._dtype = np.dtype("<u2" if size == 2 * total else "<u4")
        self._tokens = _mapped(path, self._dtype)

    def documents(self) -> Iterator[tuple[int, Ids]]:
        """Each document's byte in .ds, and its ids."""
        for start, end in pairwise([0, *self._ends.tolist()]):
            yield start * self._dtype.itemsize, self._tokens[start:end]


class _Importer:
    """Writes documents into shards of about SHARD_TOKENS, one after the other."""

    def __init__(
        self,
        folder: Path,
        tokenizer: TextTokenizer,
        val_fraction: float,
        readers: Sequence[_Megatron | _Datatrove],
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._readers = readers
        self._val_below = int(val_fraction * 2**64)
        self._inner_eos = 0
        self._empty = 0

    def shards(self) -> list[ShardInfo]:
        """Write all shards. Raises DataError when there is no document."""
        (self._folder / "shards").mkdir(parents=True, exist_ok=True)
        found: list[ShardInfo] = []
        start = Cursor()
        batches = self._batches()
        is_last = False
        while not is_last:
            writers = {split: SplitWriter(self._folder, split, len(found)) for split in SPLITS}
            tally = Tally()
            tokens = 0
            end = start
            while tokens < SHARD_TOKENS and not is_last:
                batch = next(batches, [])
                is_last = not batch
                for document, text, after in batch:
                    tally.keep([text])
                    split = "val" if document.content_hash < self._val_below else "train"
                    writers[split].add(document)
                    tokens += len(document.ids)
                    end = after
            if is_last and self._empty:
                tally.add("empty", self._empty, 0, False)
            splits = {split: writer.finish() for split, writer in writers.items()}
            info = ShardInfo(len(found), start, end, False, tally.funnel(), splits, "imported")
            write_json(shard_record_path(self._folder, info.number), {**asdict(info), "bad": []})
            found.append(info)
            start = end
        if not sum(info.text_bytes for info in found):
            raise DataError("These files contain no document with a token.")
        if self._inner_eos:
            warn(
                f"{self._inner_eos:,} documents have {self._tokenizer.eos_token} inside; "
                "it is kept, and does not end a document"
            )
        return found

    def _batches(self) -> Iterator[list[tuple[TokenizedDocument, str, Cursor]]]:
        base = 0
        for source, reader in enumerate(self._readers):
            batch: list[tuple[int, Ids]] = []
            for number, (offset, ids) in enumerate(reader.documents()):
                if not len(ids) or (len(ids) == 1 and int(ids[0]) == self._tokenizer.eos_id):
                    self._empty += 1
                    continue
                self._refuse_outside(ids, f"{reader.path}: document {number}")
                batch.append((offset, ids))
                if len(batch) == _BATCH_DOCUMENTS:
                    yield self._described(batch, source, base)
                    batch = []
            if batch:
                yield self._described(batch, source, base)
            base += reader.path.stat().st_size

    def _refuse_outside(self, ids: Ids, place: str) -> None:
        low = int(ids.min())
        high = int(ids.max())
        if low < 0 or high >= self._tokenizer.length:
            raise DataError(
                "A token id is outside the tokenizer's vocabulary.",
                got=f"{place}: {low if low < 0 else high}; "
                f"ids below {self._tokenizer.length} are known",
                fix="--tokenizer: the one that made these tokens",
            )

    def _described(
        self, batch: list[tuple[int, Ids]], source: int, base: int
    ) -> list[tuple[TokenizedDocument, str, Cursor]]:
        eos = self._tokenizer.eos_id
        bodies = [ids[:-1] if int(ids[-1]) == eos else ids for _, ids in batch]
        self._inner_eos += sum(bool((ids == eos).any()) for ids in bodies)
        texts = self._tokenizer.backend.decode_batch(
            [ids.tolist() for ids in bodies], skip_special_tokens=False
        )
        found = []
        for (offset, raw), ids, text in zip(batch, bodies, texts, strict=True):
            done = TokenizedDocument(
                ids=np.append(ids.astype(np.uint32), np.uint32(eos)),
                content_hash=content_hash(unicodedata.normalize("NFC", text)),
                text_bytes=len(text.encode()),
                source=source,
                offset=offset,
            )
            found.append((done, text, Cursor(source, offset + raw.nbytes, base)))
        return found


def _describe(
    folder: Path,
    kind: str,
    readers: Sequence[_Megatron | _Datatrove],
    tokenizer: TokenizerInfo,
    val_fraction: float,
    shards: list[ShardInfo],
) -> None:
    paths = [reader.path for reader in readers]
    sources = tuple(
        SourceInfo(str(p), p.stat().st_size, sha256_file(p), kind, "none") for p in paths
    )
    facts = {
        "format_version": FORMAT_VERSION,
        "imported": [
            {"sha256": source.sha256, "size": source.size, "format": kind} for source in sources
        ],
        "data.tokenizer": {"sha256": tokenizer.sha256, "eos": tokenizer.eos_token},
        "data.val_fraction": val_fraction,
        "eos": "after each document",
    }
    manifest = Manifest.of(
        shards,
        facts=facts,
        tokenizer=tokenizer,
        backend={"name": f"imported from {kind}", "version": ""},
        sources=sources,
        shard_bytes=SHARD_TOKENS * 4,
    )
    write_json(folder / "build.json", {"fingerprint": manifest.fingerprint, "facts": facts})
    write_json(folder / MANIFEST_NAME, manifest.to_json())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error.strerror) from None


def _mapped(path: Path, dtype: np.dtype[Any]) -> Ids:
    try:
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, why: object) -> DataError:
    return DataError("A file of the import cannot be read.", got=f"{path}: {why}")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        "A file of tokens is damaged, or not in the format of --from.", got=f"{path}: {what}"
    )
