"""What is in a store and what became of its sources: for the terminal and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wikillm.config.mixture import PERIOD
from wikillm.core.units import format_count
from wikillm.data.prepare.finish import QUARANTINE_NAME
from wikillm.data.store.store import Store


def summary_of(store: Store) -> str:
    """What is in a store and what became of its sources, as lines for the terminal."""
    if store.mixture is not None:
        return "\n\n".join(
            f"{part.name}: {part.share:.2%}\n{summary_of(part.store)}"
            for part in store.mixture.parts
        )
    manifest, tokenizer = store.manifest, store.manifest.tokenizer
    lines = [manifest.funnel.table(), ""]
    if manifest.funnel.bad_records:
        lines.append(f"unreadable records are listed in {store.dir / QUARANTINE_NAME}")
    if manifest.stopped_at_text_limit:
        lines.append(f"stopped at data.max_text_bytes={manifest.facts['data.max_text_bytes']}")
    if manifest.duplicates:
        lines.append(
            f"{manifest.duplicates:,} documents are exact copies of others (kept; copies are in one split)"
        )
    for name, split in manifest.splits.items():
        per_token = split.text_bytes / max(1, split.tokens)
        lines.append(
            f"{name:<9}  {split.documents:>11,} documents  {format_count(split.tokens):>8} tokens  "
            f"{split.text_bytes / 1e6:>9.2f} MB of text  {per_token:.2f} bytes/token"
        )
    lines.append(
        f"tokenizer  {tokenizer.name}, {tokenizer.length:,} tokens, EOS {tokenizer.eos_token} ({tokenizer.origin})"
    )
    lines.append(
        f"store      {store.dir}  (fingerprint {manifest.fingerprint[:12]}, {len(manifest.shards)} shards)"
    )
    return "\n".join(lines)


def summary_json(store: Store) -> dict[str, Any]:
    """The same for programs."""
    manifest = store.manifest
    if store.mixture is not None:
        parts = {p.name: {"count": p.count, **summary_json(p.store)} for p in store.mixture.parts}
        return {"fingerprint": manifest.fingerprint, "period": PERIOD, "mixture": parts}
    return {
        "store": str(store.dir),
        "fingerprint": manifest.fingerprint,
        "tokenizer": asdict(manifest.tokenizer),
        "sources": [asdict(source) for source in manifest.sources],
        "splits": {name: asdict(split) for name, split in manifest.splits.items()},
        "funnel": {**asdict(manifest.funnel), "read_records": manifest.funnel.read_records},
        "duplicates": manifest.duplicates,
        "stopped_at_text_limit": manifest.stopped_at_text_limit,
        "shards": len(manifest.shards),
    }
