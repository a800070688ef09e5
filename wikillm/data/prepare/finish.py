"""Finish a build: write the files that describe the finished shards, the manifest last."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wikillm.core.files import write_atomic, write_json
from wikillm.data.filters.drop_list import DROP_LIST_NAME
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.prepare.quarantine import write_quarantine
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, TokenizerInfo
from wikillm.data.store.store import (
    COMMITTED_NAME,
    INDEX,
    SPLITS,
    shard_path,
)
from wikillm.data.text.attribution import write_attribution
from wikillm.data.tokenizer.tokenizer import TextTokenizer

_MAX_COUNTED = 20_000_000  # documents whose hashes are compared: 160 MB


def finish_store(plan: BuildPlan, tokenizer: TextTokenizer, shards: list[ShardInfo]) -> Manifest:
    """Write the files that describe the finished shards. The manifest is written last."""
    if any(info.funnel.bad_records for info in shards):
        write_quarantine(plan.store, shards)
    digests = (info.sha256 for info in plan.source_infos)
    write_attribution(plan.store, list(zip(plan.sources, digests, strict=True)))
    if plan.drop_list is not None:  # the dropped documents, and the documents that they repeat
        write_atomic(plan.store / DROP_LIST_NAME, plan.drop_list.entries())
    manifest = describe_shards(plan, tokenizer, shards, _duplicates(plan.store, shards))
    (plan.store / COMMITTED_NAME).unlink(missing_ok=True)
    write_json(plan.store / MANIFEST_NAME, manifest.to_json())
    return manifest


def describe_shards(
    plan: BuildPlan, tokenizer: TextTokenizer, shards: list[ShardInfo], duplicates: int | None
) -> Manifest:
    """The manifest of a store of exactly these shards."""
    # A build that was resumed with another encoder has shards of several encoders.
    encoders = [info.partition(" ") for info in sorted({info.backend for info in shards})]
    name = plan.tokenizer.name
    origin = plan.tokenizer.origin
    return Manifest.of(
        shards,
        facts=plan.facts,
        tokenizer=TokenizerInfo.of(tokenizer, name=name, origin=origin),
        backend={
            "name": ", ".join(name for name, _, _ in encoders),
            "version": ", ".join(version for _, _, version in encoders),
        },
        sources=plan.source_infos,
        shard_bytes=plan.shard_bytes,
        duplicates=duplicates,
    )


def _duplicates(store: Path, shards: list[ShardInfo]) -> int | None:
    """Number of documents that repeat an earlier text, in either split.

    None above `_MAX_COUNTED` documents.
    """
    if sum(part.documents for info in shards for part in info.splits.values()) > _MAX_COUNTED:
        return None
    paths = [shard_path(store, split, info.number, "idx") for info in shards for split in SPLITS]
    hashes = np.concatenate([np.fromfile(path, dtype=INDEX)["hash"] for path in paths])
    return len(hashes) - len(np.unique(hashes))
