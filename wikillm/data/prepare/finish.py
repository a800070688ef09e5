"""The end of a build: the quarantine file, the count of duplicates, the manifest last of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wikillm.core.files import write_atomic, write_json
from wikillm.data.filters.drop_list import DROP_LIST_NAME
from wikillm.data.funnel import merged
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.prepare.shard import shard_record_path
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, SplitInfo, TokenizerInfo
from wikillm.data.store.store import (
    COMMITTED_NAME,
    FORMER_COMMITTED_NAME,
    INDEX,
    SPLITS,
    shard_path,
)
from wikillm.data.text.attribution import write_attribution
from wikillm.data.tokenizer.tokenizer import TextTokenizer

QUARANTINE_NAME = "quarantine.jsonl"
_MAX_COUNTED = 20_000_000  # documents whose hashes are compared: 160 MB


def finish_store(plan: BuildPlan, tokenizer: TextTokenizer, shards: list[ShardInfo]) -> Manifest:
    """Write what describes the finished shards. Nothing is changed after the manifest."""
    funnel = merged(info.funnel for info in shards)
    if funnel.bad_records:
        lines = (json.dumps(bad, ensure_ascii=False) for bad in _bad_records(plan.store, shards))
        write_atomic(plan.store / QUARANTINE_NAME, "".join(line + "\n" for line in lines))
    write_attribution(
        plan.store,
        [(s, info.sha256) for s, info in zip(plan.sources, plan.source_infos, strict=True)],
    )
    if plan.drop_list is not None:  # which documents were left out, and for which
        write_atomic(plan.store / DROP_LIST_NAME, plan.drop_list.entries())
    manifest = describe_shards(plan, tokenizer, shards, _duplicates(plan.store, shards))
    for name in (COMMITTED_NAME, FORMER_COMMITTED_NAME):
        (plan.store / name).unlink(missing_ok=True)
    write_json(plan.store / MANIFEST_NAME, manifest.to_json())
    return manifest


def describe_shards(
    plan: BuildPlan, tokenizer: TextTokenizer, shards: list[ShardInfo], duplicates: int | None
) -> Manifest:
    """The manifest of a store that ends with these shards."""
    return Manifest(
        fingerprint=plan.fingerprint,
        facts=plan.facts,
        tokenizer=TokenizerInfo(
            name=plan.tokenizer.name,
            origin=plan.tokenizer.origin,
            sha256=tokenizer.sha256,
            length=tokenizer.length,
            eos_id=tokenizer.eos_id,
            eos_token=tokenizer.eos_token,
        ),
        backend=_backends(shards),
        sources=plan.source_infos,
        shard_bytes=plan.shard_bytes,
        stopped_at_text_limit=any(info.is_cut for info in shards),
        duplicates=duplicates,
        funnel=merged(info.funnel for info in shards),
        splits={split: SplitInfo.sum(info.splits[split] for info in shards) for split in SPLITS},
        shards=tuple(shards),
    )


def _bad_records(store: Path, shards: list[ShardInfo]) -> Iterator[dict[str, object]]:
    for info in shards:
        yield from json.loads(shard_record_path(store, info.number).read_text(encoding="utf-8"))[
            "bad"
        ]


def _duplicates(store: Path, shards: list[ShardInfo]) -> int | None:
    """Documents whose text occurred before, in either split (equal texts are on one side)."""
    if sum(part.documents for info in shards for part in info.splits.values()) > _MAX_COUNTED:
        return None
    hashes = [
        np.fromfile(shard_path(store, split, info.number, "idx"), dtype=INDEX)["hash"]
        for info in shards
        for split in SPLITS
    ]
    every = np.concatenate(hashes)
    return int(len(every) - len(np.unique(every)))


def _backends(shards: list[ShardInfo]) -> dict[str, str]:
    """The libraries that encoded the shards; several when a build was continued with another one."""
    found = sorted({info.backend for info in shards})
    return {
        "name": ", ".join(name.partition(" ")[0] for name in found),
        "version": ", ".join(name.partition(" ")[2] for name in found),
    }
