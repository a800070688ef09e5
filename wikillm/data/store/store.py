"""Open and read the token store on disk.

    STORE/manifest.json          written last: without it the store is unfinished
          tokenizer/             tokenizer.json, tokenizer_config.json: the tokenizer of the store
          train/00000.tok  .idx  shard 0: token ids (uint32, little-endian); INDEX entries
          val/00000.tok  .idx    the documents of shard 0 that are held out
          shards/00000.json      counts, digests, position in the sources; written after its files
          build.json             facts and fingerprint; the first file that is written
          committed.json         during the build: number of committed shards, counted from shard 0
          tokenizer_report.json  how a tokenizer that was trained on the corpus fits its text
          quarantine.jsonl       records that could not be read: source, offset, reason, beginning
          packed/*.npy           which documents share a sequence (read.packed)

The stream of a split is the concatenation of its shards. Every document ends with EOS. Shard files
are memory-mapped. Opening a store lists two folders, which finds a missing shard at once. File
sizes are compared by the first rank at opening, and by every rank when it maps a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError, MachineError
from wikillm.data.sources.fixes import set_aside
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, ShardSplit
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer

SPLITS = ("train", "val")
COMMITTED_NAME = "committed.json"
TOKEN = np.dtype("<u4")
INDEX = np.dtype(
    [
        ("end", "<u8"),  # tokens of the shard's split up to this document's EOS, inclusive
        ("hash", "<u8"),  # blake2b-64 of the NFC text
        ("offset", "<u8"),  # offset of the document's record in the decompressed source
        ("source", "<u4"),  # index into the manifest's sources
        ("text_bytes", "<u4"),  # UTF-8 bytes of the document's text
    ]
)
_OPEN_FILES = 128  # files mapped at a time; a usual limit is 1024 descriptors per process
_OPEN_REMOTE_FILES = 16  # fewer, as a file deleted from the cache uses disk space until unmapped
_MAX_FETCHES = 5  # attempts to map a shard that other processes remove from the cache
_FLAGS = 1 << 24  # bytes of address space for the flags of verified files, two for each shard


def shard_path(store: Path, split: str, number: int, kind: str) -> Path:
    """The path of a shard file. `kind` is tok or idx."""
    return store / split / f"{number:05d}.{kind}"


def shard_files(shard: ShardInfo) -> Iterator[tuple[str, int, str]]:
    """Path within the store, size in bytes and sha256 of each file of a shard."""
    for split, part in shard.splits.items():
        tokens = shard_path(Path(), split, shard.number, "tok").as_posix()
        index = shard_path(Path(), split, shard.number, "idx").as_posix()
        yield tokens, part.tokens * TOKEN.itemsize, part.tok_sha256
        yield index, part.documents * INDEX.itemsize, part.idx_sha256


def committed_shards(store: Path) -> int:
    """Number of committed shards of an unfinished store: the build no longer changes them.

    Raises OSError or ValueError.
    """
    return int(json.loads((store / COMMITTED_NAME).read_text(encoding="utf-8"))["shards"])


class TokenStream:
    """The tokens of one split, read like one array of `n_tokens` ids.

    A pickled stream is small: the copy opens the files itself.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shards: Iterable[ShardInfo],
        ensure: Callable[[Path], None] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """`ensure` fetches a file of a remote store before it is mapped; None for a local store.

        `vocabulary`: ids from this number on are refused; None trusts the shards.
        """
        self.n_tokens = self.n_documents = self.text_bytes = 0
        self._folder = folder
        self._split = split
        self._ensure = ensure
        self._vocabulary = vocabulary
        # The number of each shard that has tokens in this split, and its part of the split.
        self._shards: list[tuple[int, ShardSplit]] = []
        self._starts = [0]  # first token of each of these shards, then the number of all tokens
        self._verified: mmap | defaultdict[int, int] | None = None
        self._open: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self.extend(shards)

    def extend(self, shards: Iterable[ShardInfo]) -> None:
        """Append the next shards of the store."""
        for shard in shards:
            self._append(shard.number, shard.splits[self._split])

    def _append(self, number: int, part: ShardSplit) -> None:
        if part.tokens:
            self.n_tokens += part.tokens
            self.n_documents += part.documents
            self.text_bytes += part.text_bytes
            self._shards.append((number, part))
            self._starts.append(self.n_tokens)

    def first_shards(self, count: int) -> TokenStream:
        """The tokens in the first `count` shards of the store."""
        first = TokenStream(self._folder, self._split, (), self._ensure, self._vocabulary)
        for number, part in self._shards:
            if number < count:
                first._append(number, part)
        return first

    def __getstate__(self) -> dict[str, Any]:
        fresh: defaultdict[int, int] = defaultdict(int)
        verified = None if self._verified is None else fresh
        return {**self.__dict__, "_open": OrderedDict(), "_verified": verified}

    def verify_on_first_use(self) -> None:
        """From now on, compare the sha256 of a shard with the manifest before its first use.

        A shard is compared once in all of this process and its later forks, and again in a pickled
        copy.
        """
        self._verified = mmap(-1, _FLAGS)  # shared with forked loader workers

    def __len__(self) -> int:
        return self.n_tokens

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """The ids [start, stop), read-only. Raises IndexError outside the stream."""
        self._check(start, stop)
        parts = [self._map("tok", shard)[a:b] for shard, a, b in self.parts(start, stop)]
        # Ids within one shard are a view of the file, not a copy.
        ids = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, TOKEN), *parts])
        self.refuse_outside(ids, self._vocabulary)
        return ids

    def document_ends(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Positions e in (start, stop] at which a document ends: token e-1 is its EOS."""
        stop = self.n_tokens if stop is None else stop
        self._check(start, stop)
        found = [np.empty(0, dtype=np.int64)]
        for shard, first, last in self.parts(start, stop):
            ends = self._map("idx", shard)["end"]
            low, high = np.searchsorted(ends, [first, last], side="right")
            found.append(ends[low:high].astype(np.int64) + self._starts[shard])
        return np.concatenate(found)

    def documents(self, start: int, stop: int) -> Iterator[tuple[int, range, Any]]:
        """Number, token range and `INDEX` entry of each document with tokens in [start, stop)."""
        self._check(start, stop)
        for shard, first, last in self.parts(start, stop):
            index = self._map("idx", shard)
            before = sum(part.documents for _, part in self._shards[:shard])
            low, high = np.searchsorted(index["end"], [first, last - 1], side="right").tolist()
            for row in range(low, high + 1):
                begin = int(index["end"][row - 1]) if row else 0
                end = int(index["end"][row])
                tokens = range(self._starts[shard] + begin, self._starts[shard] + end)
                yield before + row, tokens, index[row]

    def indexes(self) -> Iterator[npt.NDArray[Any]]:
        """The `INDEX` entries of each shard, in order; `end` counts from the shard's start."""
        for shard in range(len(self._shards)):
            yield self._map("idx", shard)

    def count_tokens(self, vocabulary: int) -> npt.NDArray[np.int64]:
        """Number of occurrences of each id in the split, shape [vocabulary]."""
        counts = np.zeros(vocabulary, dtype=np.int64)
        for start in range(0, self.n_tokens, 1 << 22):
            ids = self.read(start, min(start + (1 << 22), self.n_tokens))
            self.refuse_outside(ids, vocabulary)
            counts += np.bincount(ids, minlength=vocabulary)
        return counts

    def refuse_outside(self, ids: npt.NDArray[np.uint32], vocabulary: int | None) -> None:
        """Raise DataError when an id is not below `vocabulary`."""
        if vocabulary is None or not len(ids) or int(ids.max()) < vocabulary:
            return
        raise DataError(
            "A token id is outside the vocabulary.",
            got=f"id {ids.max()} in {self._folder / self._split}, vocabulary of {vocabulary}",
            fix="build the store again: it is damaged, or was made with another tokenizer",
        )

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.n_tokens}")

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The parts of [start, stop): number of a shard (or stream), and first and end in it."""
        while start < stop:
            part = bisect_right(self._starts, start) - 1
            begin = self._starts[part]
            end = min(stop, self._starts[part + 1])
            yield part, start - begin, end - begin
            start = end

    def _map(self, kind: str, shard: int) -> Any:
        """A mapped shard file; beyond the limit the least recently used file is closed."""
        key = (kind, shard)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        # Map the file, whose size must be that in the manifest.
        number, part = self._shards[shard]
        path = shard_path(self._folder, self._split, number, kind)
        if kind == "idx":
            mapped = self._map_file(path, INDEX, part.documents * INDEX.itemsize)
            indexed = int(mapped["end"][-1])
            if indexed != part.tokens:
                what = f"{path} indexes {indexed} tokens instead of {part.tokens}"
                raise damaged(self._folder, what)
        else:
            mapped = self._map_file(path, TOKEN, part.tokens * TOKEN.itemsize)
        # Compare its sha256 once.
        flag = 2 * number + (kind == "idx")
        if self._verified is not None and not self._verified[flag]:
            wanted = part.idx_sha256 if kind == "idx" else part.tok_sha256
            found = hashlib.sha256(mapped.view(np.uint8).data).hexdigest()
            if found != wanted:
                what = f"{path}: its sha256 is {found}, the manifest has {wanted}"
                raise damaged(self._folder, what)
            self._verified[flag] = 1
        self._open[key] = mapped
        if len(self._open) > (_OPEN_FILES if self._ensure is None else _OPEN_REMOTE_FILES):
            self._open.popitem(last=False)
        return mapped

    def _map_file(self, path: Path, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
        """Map a file, which must have `size` bytes. A file of a remote store is fetched first."""
        for attempt in range(1, _MAX_FETCHES + 1):
            if self._ensure is not None:
                self._ensure(path)
            try:
                if (found := path.stat().st_size) != size:
                    raise damaged(self._folder, f"{path} has {found} bytes instead of {size}")
                # A plain array, because slicing np.memmap takes ten times as long.
                return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
            except FileNotFoundError as error:
                # Another process may just have removed the file to make room in the cache.
                if self._ensure is None or attempt == _MAX_FETCHES:
                    raise _unreadable(path, error, self._ensure is not None) from None
            except OSError as error:
                raise _unreadable(path, error) from None
        raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, slots=True)
class Store:
    """A finished token store. For a remote store, `dir` is its folder in the cache."""

    dir: Path
    manifest: Manifest
    train: TokenStream
    val: TokenStream

    @property
    def tokenizer_dir(self) -> Path:
        return self.dir / "tokenizer"

    def tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self.tokenizer_dir)

    @classmethod
    def open(cls, folder: Path, *, sizes: bool = False) -> Store:
        """Open a finished store and check that all files exist; with `sizes` also their sizes.

        Checking sizes takes one stat call per file. Without `sizes`, a size is checked when its
        file is first read. Raises DataError that names the fault.
        """
        path = folder / MANIFEST_NAME
        try:
            manifest = Manifest.parse(path.read_bytes())
        except FileNotFoundError:
            is_begun = (folder / "build.json").exists()
            raise DataError(
                "There is no finished token store here.",
                got=f"{path} is missing{'; the build was not finished' if is_begun else ''}",
                fix="wikillm prepare data.path=FILE (resumes a stopped build)",
            ) from None
        except OSError as error:
            raise _not_accessible(path, error) from None
        except ValueError as error:
            raise damaged(folder, f"{path}: {error}") from None
        length = manifest.tokenizer.length
        train, val = (
            TokenStream(folder, split, manifest.shards, vocabulary=length) for split in SPLITS
        )
        store = cls(folder, manifest, train, val)
        store.check_files(sizes=sizes)
        return store

    def check_files(self, *, sizes: bool) -> None:
        """Raise DataError if a file is missing or, with `sizes`, has another size."""
        present: set[str] = set()
        for split in SPLITS:
            try:
                present |= {f"{split}/{name}" for name in os.listdir(self.dir / split)}
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _not_accessible(self.dir / split, error) from None
        for shard in self.manifest.shards:
            for name, size, _ in shard_files(shard):
                path = self.dir / name
                if name not in present:
                    raise damaged(self.dir, f"{path} is missing")
                if sizes and (found := path.stat().st_size) != size:
                    raise damaged(self.dir, f"{path} has {found} bytes instead of {size}")
        if not (self.tokenizer_dir / "tokenizer.json").is_file():
            raise damaged(self.dir, f"{self.tokenizer_dir / 'tokenizer.json'} is missing")


def damaged(folder: Path, what: str) -> DataError:
    return DataError("A token store is damaged.", got=what, fix=set_aside(folder))


def _not_accessible(path: Path, error: OSError) -> MachineError:
    return MachineError(
        "A token store cannot be read.",
        got=f"{path}: {error.strerror or error}",
        fix="check owner and permissions of the folder, and its disk or mount",
    )


def _unreadable(path: Path, error: Exception, is_cached: bool = False) -> DataError:
    fix = "set a larger data.cache_bytes, or a data.cache that no other run uses"
    return DataError(
        "A shard of the token store cannot be read.",
        got=f"{path}: {error}",
        fix=fix if is_cached else None,
    )
