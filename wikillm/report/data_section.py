"""The page's section on data: store, tokenizer, splits, mixture, funnel and sources."""

from __future__ import annotations

from typing import Any

from wikillm.core.units import format_count
from wikillm.observe import names
from wikillm.observe.redact import without_queries
from wikillm.report.run_files import RunFiles, as_dict, as_dicts, number

MOST_SOURCES = 200


def data_section(run: RunFiles) -> dict[str, Any]:
    """Values for the template's section "Data"; `data` is empty if data.json is missing."""
    data = run.data
    sources = as_dicts(data.get("sources"))
    return {
        "data": _store(data),
        "splits": [_split(name, split) for name, split in as_dict(data.get("splits")).items()],
        "mixture": list(_mixture(run)),
        "funnel": _funnel(as_dict(data.get("funnel"))),
        "sources": [
            (
                without_queries(str(source.get("url") or source.get("path"))),
                f"{number(source, 'size') or 0:,.0f}",
                str(source.get("format", "")),
                str(source.get("compression", "")),
                str(source.get("sha256", ""))[:12],
            )
            for source in sources[:MOST_SOURCES]
        ],
        "more_sources": max(0, len(sources) - MOST_SOURCES),
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
    last = run.metrics[-1] if run.metrics else {}
    sources = as_dicts(run.data.get("mixture"))
    total = sum(number(source, "count") or 0 for source in sources)
    for source in sources:
        name = str(source.get("name"))
        tokens = number(last, names.of_source(names.SOURCE_TOKENS, name))
        epochs = number(last, names.of_source(names.SOURCE_EPOCHS, name))
        share = (number(source, "count") or 0) / total if total else 0.0
        used = "-" if tokens is None else format_count(tokens)
        yield name, f"{share:.2%}", used, "-" if epochs is None else f"{epochs:.2f}"


def _funnel(funnel: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the records read, dropped (one row per reason) and kept, as shares of those read."""
    if not funnel:
        return []
    lines = as_dicts(funnel.get("dropped"))
    lines.sort(key=lambda line: -(number(line, "records") or 0))
    kept = number(funnel, "kept_records") or 0
    total = kept + sum(number(line, "records") or 0 for line in lines)
    characters = number(funnel, "kept_characters") or 0
    rows = [_bar("read", total, total, None, "")]
    for line in lines:
        name = f"{line.get('reason')}" + (" (cannot be read)" if line.get("is_bad") else "")
        dropped = number(line, "records") or 0
        rows.append(_bar(name, dropped, total, number(line, "characters"), "bad"))
    return [*rows, _bar("kept", kept, total, characters, "")]


def _bar(
    name: str, records: float, total: float, characters: float | None, kind: str
) -> dict[str, Any]:
    share = records / total if total else 0.0
    return {
        "name": name,
        "kind": kind,
        "width": f"{100 * share:.2f}",
        "records": f"{records:,.0f} records",
        "share": f"{share:.1%}",
        "characters": "" if characters is None else f"{characters:,.0f} characters",
    }
