"""Check a finished store: sizes, every sha256, and that the files hold what they should.

A sha256 shows that a file is the one that the manifest names. That its ids are in the vocabulary,
and that its documents end with EOS, is checked as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wikillm.core.files import sha256_file
from wikillm.data.store.manifest import MANIFEST_NAME, ShardInfo, fingerprint_of
from wikillm.data.store.store import INDEX, TOKEN, Store, damaged, shard_files, shard_path


def verify(store: Store) -> dict[str, Any]:
    """Read every file. Raises DataError naming the first that is wrong."""
    store.check_files(sizes=True)
    path = store.dir / MANIFEST_NAME
    if fingerprint_of(store.manifest.facts) != store.manifest.fingerprint:
        raise damaged(store.dir, f"{path}: the fingerprint is not that of the facts")
    digests = [(store.tokenizer_dir / "tokenizer.json", store.manifest.tokenizer.sha256)]
    for shard in store.manifest.shards:
        digests += [(store.dir / name, digest) for name, _, digest in shard_files(shard)]
    for path, digest in digests:
        if sha256_file(path) != digest:
            raise damaged(store.dir, f"{path}: its sha256 is not the one in the manifest")
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
        what = f"{path}: its documents are not {tokens} tokens one after the other"
        raise damaged(store.dir, what)
    if len(index) and int(index["source"].max()) >= len(store.manifest.sources):
        raise damaged(store.dir, f"{path} names a source that the manifest does not")
    ids = np.fromfile(shard_path(store.dir, split, shard.number, "tok"), dtype=TOKEN)
    store.train.refuse_outside(ids, store.manifest.tokenizer.length)
    eos_id = store.manifest.tokenizer.eos_id
    if (ids[ends - 1] != eos_id).any():
        raise damaged(store.dir, f"{path}: a document does not end with EOS ({eos_id})")


def _check_tokenizer(store: Store) -> None:
    named = store.manifest.tokenizer
    found = store.tokenizer()
    said = f"{named.length} ids and EOS {named.eos_id} {named.eos_token!r}"
    held = f"{found.length} ids and EOS {found.eos_id} {found.eos_token!r}"
    if said != held:
        path = store.tokenizer_dir / "tokenizer.json"
        raise damaged(store.dir, f"{path}: {held}; the manifest says {said}")
