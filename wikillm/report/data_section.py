"""The page's section on data: store, tokenizer, splits, mixture, funnel and sources."""

from __future__ import annotations

from typing import Any

from wikillm.core.units import format_count
from wikillm.observe import names
from wikillm.observe.redact import without_queries
from wikillm.report.run_files import RunFiles, as_dict, as_dicts, number

MAX_SOURCES = 200


def data_section(run: RunFiles) -> dict[str, Any]:
    """Values for the template's section "Data"; `data` is empty if data.json is missing."""
    data = run.data
    sources = as_dicts(data.get("sources"))
    return {
        "data": _store(data),
        "splits": [_split(name, split) for name, split in as_dict(data.get("splits")).items()],
        "mixture": list(_mixture(run)),
        "funnel": list(_funnel(as_dict(data.get("funnel")))),
        "sources": [
            (
                without_queries(str(source.get("url") or source.get("path"))),
                f"{number(source, 'size') or 0:,.0f}",
                str(source.get("format", "")),
                str(source.get("compression", "")),
                str(source.get("sha256", ""))[:12],
            )
            for source in sources[:MAX_SOURCES]
        ],
        "more_sources": max(0, len(sources) - MAX_SOURCES),
    }


def _store(data: dict[str, Any]) -> list[tuple[str, str]]:
    if not data:
        return []
    tokenizer = as_dict(data.get("tokenizer"))
    fingerprint = str(data.get("fingerprint", ""))[:16]
    rows = [("store", f"{data.get('store')} (fingerprint {fingerprint})")]
    if tokenizer:
        text = f"{tokenizer.get('name')}: {number(tokenizer, 'length') or 0:,.0f} tokens, "
        text += f"EOS {tokenizer.get('eos_token')} ({tokenizer.get('origin')})"
        rows.append(("tokenizer", text))
    if data.get("complete") is False:
        rows.append(("state", "still being built when the counts were recorded"))
    return rows


def _split(name: str, split: Any) -> tuple[str, ...]:
    found = as_dict(split)
    documents, tokens, size = (
        number(found, key) or 0 for key in ("documents", "tokens", "text_bytes")
    )
    per_token = f"{size / tokens:.3f}" if tokens else "-"
    return (name, f"{documents:,.0f}", f"{tokens:,.0f}", f"{size:,.0f}", per_token)


def _mixture(run: RunFiles) -> Any:
    """(source, share, tokens used, epochs) of each source of a mixture."""
    sources = as_dicts(run.data.get("mixture"))
    total = sum(number(source, "count") or 0 for source in sources)
    for source in sources:
        name = str(source.get("name"))
        tokens = number(run.last, names.of_source(names.SOURCE_TOKENS, name))
        epochs = number(run.last, names.of_source(names.SOURCE_EPOCHS, name))
        share = (number(source, "count") or 0) / total if total else 0.0
        used = "-" if tokens is None else format_count(tokens)
        yield name, f"{share:.2%}", used, "-" if epochs is None else f"{epochs:.2f}"


def _funnel(funnel: dict[str, Any]) -> Any:
    """(name, class of the bar, records, share of the records read, characters) of a bar.

    The bars are the records read, dropped (one bar per reason) and kept.
    """
    if not funnel:
        return
    reasons = as_dicts(funnel.get("dropped"))
    reasons.sort(key=lambda reason: -(number(reason, "records") or 0))
    kept = number(funnel, "kept_records") or 0
    total = kept + sum(number(reason, "records") or 0 for reason in reasons)
    yield "read", "", total, 1.0 if total else 0.0, None
    for reason in reasons:
        name = f"{reason.get('reason')}" + (" (cannot be read)" if reason.get("is_bad") else "")
        dropped = number(reason, "records") or 0
        share = dropped / total if total else 0.0
        yield name, "bad", dropped, share, number(reason, "characters")
    share = kept / total if total else 0.0
    yield "kept", "", kept, share, number(funnel, "kept_characters") or 0
