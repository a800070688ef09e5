"""Import tokens of other tools as a store: Megatron's .bin/.idx, datatrove's .ds (see `exports`).

Neither format contains the tokenizer, so the user names it; every id must be in its vocabulary.
Documents are decoded to text, so that each gets the content hash and the split that it would have
if it were prepared from text. EOS is added to a document without it. The store is finished and has
no sources: `data.store=FOLDER` without `data.path` uses it.
"""

from __future__ import annotations

import shutil
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import STAGING_SUFFIX, rename_durably, sha256_file, write_json
from wikillm.core.log import warn
from wikillm.data.filters.documents import content_hashes
from wikillm.data.funnel import Tally
from wikillm.data.inspect.exports import MEGATRON_MAGIC
from wikillm.data.prepare.shard import write_documents
from wikillm.data.sources.read import Cursor
from wikillm.data.store.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardInfo,
    SourceInfo,
    TokenizerInfo,
)
from wikillm.data.store.store import INDEX, SPLITS, Store
from wikillm.data.store.writer import SplitWriter, shard_record_path
from wikillm.data.tokenizer.encoders import Encoded
from wikillm.data.tokenizer.tokenizer import TextTokenizer, copy_tokenizer, load_tokenizer

SHARD_TOKENS = 1 << 24  # 64 MiB
_BATCH_DOCUMENTS = 256
# Megatron's codes of the token types; 6 and 7 are floating point.
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

Ids = npt.NDArray[Any]


def import_store(
    kind: str, files: Sequence[Path], tokenizer_folder: Path, target: Path, val_fraction: float
) -> Store:
    """Write the documents of `files`, in order, as a store; `target` exists once it is complete.

    Raises DataError for damaged files and ids outside the vocabulary, ConfigError when `target`
    exists.
    """
    if target.exists():
        raise ConfigError(
            "The folder for the imported store exists already.",
            got=str(target),
            fix="choose another folder with --out",
        )
    if not 0 < val_fraction < 1:
        raise ConfigError("--val-fraction must be a share between 0 and 1.", got=str(val_fraction))
    tokenizer = load_tokenizer(tokenizer_folder)
    try:
        readers = [(_Megatron if kind == "megatron" else _Datatrove)(path) for path in files]
    except OSError as error:
        got = f"{error.filename}: {error.strerror}"
        raise DataError("A file of the import cannot be read.", got=got) from None
    # Write a complete store aside, and rename it.
    staged = target.with_name(f".{target.name}{STAGING_SUFFIX}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        copy_tokenizer(tokenizer_folder, staged / "tokenizer")
        shards = _write_shards(staged, tokenizer, val_fraction, readers)
        name = tokenizer_folder.absolute().name
        info = TokenizerInfo.of(tokenizer, name=name, origin=str(tokenizer_folder))
        _describe(staged, kind, [reader.path for reader in readers], info, val_fraction, shards)
        rename_durably(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Store.open(target)


class _Megatron:
    """PREFIX.bin and PREFIX.idx. A document is one or more sequences."""

    def __init__(self, path: Path) -> None:
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        self.path = prefix.with_name(prefix.name + ".bin")
        index = prefix.with_name(prefix.name + ".idx").read_bytes()
        if not index.startswith(MEGATRON_MAGIC) or len(index) < 34:
            raise _damaged(self.path, "its .idx does not begin like Megatron's")
        version, code, sequences, borders = struct.unpack_from("<QBQQ", index, 9)
        if version != 1 or code not in _MEGATRON_TYPES:
            what = f"its .idx has version {version} and type {code}, not 1 and an integer type"
            raise _damaged(self.path, what)
        size = 34 + 12 * sequences + 8 * borders
        if len(index) != size:
            raise _damaged(self.path, f"its .idx has {len(index)} bytes instead of {size}")
        self._lengths = np.frombuffer(index, "<i4", sequences, 34)
        self._offsets = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
        self._borders = np.frombuffer(index, "<i8", borders, 34 + 12 * sequences)
        self._dtype = np.dtype(_MEGATRON_TYPES[code])
        self._tokens = _mapped(self.path, np.dtype("u1"))
        ends = self._offsets + self._lengths.astype(np.int64) * self._dtype.itemsize
        # Every document begins at or after the one before it, and lies within the .bin.
        in_order = not borders or (self._borders[0] == 0 and self._borders[-1] == sequences)
        is_outside = (self._lengths < 0) | (self._offsets < 0) | (ends > len(self._tokens))
        if not in_order or (np.diff(self._borders) < 0).any() or is_outside.any():
            size = len(self._tokens)
            raise _damaged(self.path, f"its .idx points outside the {size} bytes of the .bin")

    def documents(self) -> Iterator[tuple[int, Ids]]:
        """The offset of each document in .bin, and its ids."""
        for low, high in pairwise(self._borders.tolist()):
            offset = int(self._offsets[low]) if low < high else 0
            parts = [self._sequence(number) for number in range(low, high)]
            yield offset, np.concatenate([np.empty(0, self._dtype), *parts])

    def _sequence(self, number: int) -> Ids:
        start = int(self._offsets[number])
        size = int(self._lengths[number]) * self._dtype.itemsize
        return self._tokens[start : start + size].view(self._dtype)


class _Datatrove:
    """FILE.ds and FILE.ds.index. The sizes of both files show the number of bytes per token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path.with_name(path.name + ".index")
        content = index.read_bytes()
        if len(content) % 8:
            what = f"{index.name} has {len(content)} bytes, which is not a multiple of 8"
            raise _damaged(path, what)
        self._ends = np.frombuffer(content, "<u8").astype(np.int64)
        total = int(self._ends[-1]) if len(self._ends) else 0
        size = path.stat().st_size
        if (np.diff(self._ends, prepend=0) < 0).any() or size not in (2 * total, 4 * total):
            what = f"it has {size} bytes, but {index.name} lists {total} tokens of 2 or 4 bytes"
            raise _damaged(path, what)
        self._dtype = np.dtype("<u2" if size == 2 * total else "<u4")
        self._tokens = _mapped(path, self._dtype)

    def documents(self) -> Iterator[tuple[int, Ids]]:
        """The offset of each document in .ds, and its ids."""
        for start, end in pairwise([0, *self._ends.tolist()]):
            yield start * self._dtype.itemsize, self._tokens[start:end]


_Reader = _Megatron | _Datatrove


def _write_shards(
    folder: Path, tokenizer: TextTokenizer, val_fraction: float, readers: Sequence[_Reader]
) -> list[ShardInfo]:
    """Write all documents, in shards of about SHARD_TOKENS tokens.

    Raises DataError when no document has a token.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    batches = _batches(readers, tokenizer, counts)
    found: list[ShardInfo] = []
    start = Cursor()
    is_last = False
    while not is_last:
        # Fill a shard with whole batches.
        writers = {split: SplitWriter(folder, split, len(found)) for split in SPLITS}
        tally = Tally()
        tokens = 0
        end = start
        while tokens < SHARD_TOKENS:
            batch = next(batches, None)
            if batch is None:
                is_last = True
                break
            tally.keep(batch.texts)
            write_documents(writers, batch.ids, batch.rows, val_fraction)
            tokens += len(batch.ids)
            end = batch.end
        # The funnel of the last shard has the empty documents of all files.
        if is_last and counts["empty"]:
            tally.add("empty", counts["empty"], 0, False)
        splits = {split: writer.finish() for split, writer in writers.items()}
        info = ShardInfo(len(found), start, end, False, tally.funnel(), splits, "imported")
        write_json(shard_record_path(folder, info.number), {**asdict(info), "bad": []})
        found.append(info)
        start = end
    if not sum(info.text_bytes for info in found):
        raise DataError("These files contain no document with a token.")
    if counts["with EOS inside"]:
        warn(
            f"{counts['with EOS inside']:,} documents contain {tokenizer.eos_token} in the middle; "
            "it is kept and does not end the document"
        )
    return found


class _Batch(NamedTuple):
    """Several documents: their ids with EOS, concatenated, and their `INDEX` entries and texts."""

    ids: npt.NDArray[np.uint32]
    rows: npt.NDArray[Any]
    texts: list[str]
    end: Cursor  # end of the last document


def _batches(
    readers: Sequence[_Reader], tokenizer: TextTokenizer, counts: Counter[str]
) -> Iterator[_Batch]:
    """The documents of all files, in batches.

    Adds the number of documents that are empty or contain EOS to `counts`. Raises DataError for an
    id outside the vocabulary.
    """
    base = 0
    for source, reader in enumerate(readers):
        documents = _sound_documents(reader, tokenizer, counts)
        while batch := list(islice(documents, _BATCH_DOCUMENTS)):
            bodies = [ids[:-1] if int(ids[-1]) == tokenizer.eos_id else ids for _, ids in batch]
            counts["with EOS inside"] += sum((ids == tokenizer.eos_id).any() for ids in bodies)
            lists = [ids.tolist() for ids in bodies]
            texts = tokenizer.backend.decode_batch(lists, skip_special_tokens=False)
            hashes, _ = content_hashes([unicodedata.normalize("NFC", text) for text in texts])
            with_eos = Encoded.of(lists).with_last(tokenizer.eos_id)
            rows = np.empty(len(batch), dtype=INDEX)
            rows["end"] = np.diff(with_eos.ends)
            rows["hash"] = hashes
            rows["offset"] = [offset for offset, _ in batch]
            rows["source"] = source
            rows["text_bytes"] = [len(text.encode()) for text in texts]
            offset, ids = batch[-1]
            yield _Batch(with_eos.ids, rows, texts, Cursor(source, offset + ids.nbytes, base))
        base += reader.path.stat().st_size


def _sound_documents(
    reader: _Reader, tokenizer: TextTokenizer, counts: Counter[str]
) -> Iterator[tuple[int, Ids]]:
    for number, (offset, ids) in enumerate(reader.documents()):
        if not len(ids) or (len(ids) == 1 and int(ids[0]) == tokenizer.eos_id):
            counts["empty"] += 1
            continue
        outside = ids[(ids < 0) | (ids >= tokenizer.length)]
        if len(outside):
            raise DataError(
                "A token id is outside the tokenizer's vocabulary.",
                got=f"{reader.path}: document {number}: {outside[0]}; "
                f"the tokenizer has ids below {tokenizer.length}",
                fix="pass --tokenizer the folder of the tokenizer that made these tokens",
            )
        yield offset, ids


def _describe(
    folder: Path,
    kind: str,
    paths: Sequence[Path],
    tokenizer: TokenizerInfo,
    val_fraction: float,
    shards: list[ShardInfo],
) -> None:
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


def _mapped(path: Path, dtype: np.dtype[Any]) -> Ids:
    if path.stat().st_size:
        return np.memmap(path, dtype=dtype, mode="r")
    return np.empty(0, dtype)  # an empty file cannot be mapped


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        "A file of tokens is damaged, or not in the format that --from names.",
        got=f"{path}: {what}",
    )
