"""Summarize a corpus: tokens, documents, tokenizer and funnel, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from wikillm.config.mixture import PERIOD
from wikillm.core.units import format_count
from wikillm.data.prepare.quarantine import QUARANTINE_NAME
from wikillm.data.read.corpus import Corpus, describe_store
from wikillm.data.store.manifest import Manifest


def summary_of(corpus: Corpus) -> str:
    """The summary of a corpus as lines for the terminal."""
    if not corpus.mixture:
        return store_summary(corpus.dir, corpus.manifest)
    summaries = []
    for source in corpus.mixture:
        summary = store_summary(source.store.dir, source.store.manifest)
        summaries.append(f"{source.name}: {source.share:.2%}\n{summary}")
    return "\n\n".join(summaries)


def summary_json(corpus: Corpus) -> dict[str, Any]:
    """The summary of a corpus as JSON."""
    if not corpus.mixture:
        return store_summary_json(corpus.dir, corpus.manifest)
    sources = {}
    for source in corpus.mixture:
        found = store_summary_json(source.store.dir, source.store.manifest)
        sources[source.name] = {"count": source.count, **found}
    return {"fingerprint": corpus.manifest.fingerprint, "period": PERIOD, "mixture": sources}


def store_summary(folder: Path, manifest: Manifest) -> str:
    """The summary of one store as lines for the terminal."""
    tokenizer = manifest.tokenizer
    lines = [manifest.funnel.table(), ""]
    if manifest.funnel.bad_records:
        lines.append(f"unreadable records are listed in {folder / QUARANTINE_NAME}")
    if manifest.stopped_at_text_limit:
        lines.append(f"stopped at data.max_text_bytes={manifest.facts['data.max_text_bytes']}")
    if manifest.duplicates:
        lines.append(
            f"{manifest.duplicates:,} documents are exact copies of others "
            "(they are kept; all copies of a text are in the same split)"
        )
    for name, split in manifest.splits.items():
        per_token = split.text_bytes / max(1, split.tokens)
        lines.append(
            f"{name:<9}  {split.documents:>11,} documents  {format_count(split.tokens):>8} tokens  "
            f"{split.text_bytes / 1e6:>9.2f} MB of text  {per_token:.2f} bytes/token"
        )
    lines.append(
        f"tokenizer  {tokenizer.name}, {tokenizer.length:,} tokens, EOS {tokenizer.eos_token} "
        f"({tokenizer.origin})"
    )
    lines.append(
        f"store      {folder}  "
        f"(fingerprint {manifest.fingerprint[:12]}, {len(manifest.shards)} shards)"
    )
    return "\n".join(lines)


def store_summary_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The summary of one store as JSON."""
    return {
        **describe_store(folder, manifest),
        "funnel": {**asdict(manifest.funnel), "read_records": manifest.funnel.read_records},
        "duplicates": manifest.duplicates,
        "stopped_at_text_limit": manifest.stopped_at_text_limit,
        "shards": len(manifest.shards),
    }
