"""Verify a finished store: sizes, every sha256, and the content of the files.

An equal sha256 shows only that a file has not changed since it was written. So `verify` also checks
that all ids are in the vocabulary and that every document ends with EOS.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wikillm.core.files import sha256_file
from wikillm.data.store.manifest import MANIFEST_NAME, ShardInfo, fingerprint_of
from wikillm.data.store.store import INDEX, TOKEN, Store, damaged, shard_files, shard_path


def verify(store: Store) -> dict[str, Any]:
    """Read and check every file. Raises DataError that names the first faulty file."""
    store.check_files(sizes=True)
    path = store.dir / MANIFEST_NAME
    if fingerprint_of(store.manifest.facts) != store.manifest.fingerprint:
        raise damaged(store.dir, f"{path}: the fingerprint does not match the facts")
    digests = [(store.tokenizer_dir / "tokenizer.json", store.manifest.tokenizer.sha256)]
    for shard in store.manifest.shards:
        digests += [(store.dir / name, digest) for name, _, digest in shard_files(shard)]
    for path, digest in digests:
        if sha256_file(path) != digest:
            raise damaged(store.dir, f"{path}: its sha256 differs from the manifest")
    for shard in store.manifest.shards:
        for name in shard.splits:
            _check_documents(store, shard, name)
    _check_tokenizer(store)
    return {
        "store": str(store.dir),
        "files": len(digests),
        "bytes": sum(path.stat().st_size for path, _ in digests[1:]),
        "manifest_sha256": sha256_file(store.dir / MANIFEST_NAME),
    }


def _check_documents(store: Store, shard: ShardInfo, split: str) -> None:
    path = shard_path(store.dir, split, shard.number, "idx")
    index = np.fromfile(path, dtype=INDEX)
    ends = index["end"].astype(np.int64)
    tokens = shard.splits[split].tokens
    if (np.diff(ends, prepend=0) < 1).any() or (int(ends[-1]) if len(ends) else 0) != tokens:
        what = f"{path}: its documents do not follow each other up to {tokens} tokens"
        raise damaged(store.dir, what)
    if len(index) and int(index["source"].max()) >= len(store.manifest.sources):
        raise damaged(store.dir, f"{path} names a source that is not in the manifest")
    ids = np.fromfile(shard_path(store.dir, split, shard.number, "tok"), dtype=TOKEN)
    store.train.refuse_outside(ids, store.manifest.tokenizer.length)
    eos_id = store.manifest.tokenizer.eos_id
    if (ids[ends - 1] != eos_id).any():
        raise damaged(store.dir, f"{path}: a document does not end with EOS ({eos_id})")


def _check_tokenizer(store: Store) -> None:
    info = store.manifest.tokenizer
    loaded = store.tokenizer()
    expected = f"{info.length} ids and EOS {info.eos_id} {info.eos_token!r}"
    found = f"{loaded.length} ids and EOS {loaded.eos_id} {loaded.eos_token!r}"
    if found != expected:
        path = store.tokenizer_dir / "tokenizer.json"
        raise damaged(store.dir, f"{path}: it has {found}; the manifest says {expected}")
