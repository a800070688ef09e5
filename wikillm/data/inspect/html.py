"""What `stats` and `show` find, as one HTML file: no script, no network, bars as CSS.

Every text of a store is escaped: a document cannot become part of the page. Colours follow the
reader's light or dark setting; bars carry their numbers as text, so nothing is shown by colour
alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape as escape_html
from typing import Any

from wikillm.core.printable import printable
from wikillm.data.inspect.stats import length_line, stats_of
from wikillm.data.store.store import Store
from wikillm.data.tokenizer.tokenizer import TextTokenizer

_STYLE = """
:root { color-scheme: light dark; --bar: #3a6ea5; --bad: #b5533c; --line: #8884; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
td.bar { width: 24rem; } .bar div { background: var(--bar); height: 1rem; min-width: 1px; }
.bar .bad { background: var(--bad); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-bottom: 2px solid var(--bar); }
.text span:nth-child(even) { border-color: var(--bad); }
"""
_MAX_TOKENS = 20_000  # shown with their borders; the rest of a text is shown plain


def escape(text: str) -> str:
    """No text becomes a tag or a control character, or changes the direction of what follows."""
    return escape_html(printable(text))


def stats_page(store: Store) -> str:
    """Lengths, funnel, sources, tokenizer and settings of a store."""
    found = stats_of(store)
    parts = [_facts_table(found)]
    for name, split in found["splits"].items():
        parts.append(f"<h2>{escape(name)}: tokens per document, EOS included</h2>")
        if not split["documents"]:
            parts.append("<p>no documents</p>")
            continue
        most = max(bin["documents"] for bin in split["histogram"])
        bars = [
            (
                f"{bin['from']:,} to {bin['below'] - 1:,} tokens",
                f"{bin['documents']:,} documents",
                bin["documents"] / most,
                False,
            )
            for bin in split["histogram"]
        ]
        parts += [f"<p>{length_line(split['length'])}</p>", _bars(bars)]
    sources = [
        (s.path, f"{s.size:,}", s.format, s.compression, s.sha256[:16])
        for s in store.manifest.sources
    ]
    settings = [
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in store.manifest.facts.items()
        if name != "data.path"
    ]
    parts += [
        "<h2>What became of the records</h2>",
        _funnel(found["funnel"]),
        "<h2>Sources</h2>",
        _table([("file", "bytes", "format", "compression", "sha256"), *sources]),
        "<h2>Settings that decide the store</h2>",
        _table([("key", "value"), *settings]),
    ]
    return _page(f"Token store {store.manifest.fingerprint[:12]}", parts)


def show_page(store: Store, found: dict[str, Any]) -> str:
    """A document or a sample (of `inspect.show`), with the borders of its tokens."""
    tokenizer = store.tokenizer()
    parts = []
    if "parts" in found:
        stream = store.train
        title = f"Sample {found['sample']}"
        parts.append(
            f"<p>{found['targets']} targets, sequence length {found['sequence_length']}, "
            f"seed {found['seed']}</p>"
        )
    else:
        stream = getattr(store, found["split"])
        title = f"Document {found['document']} of {found['split']}"
    for part in found.get("parts", [found]):
        start = part["first"]
        first, end = part.get("tokens", (start, part["end"]))
        rows = [
            ("document", f"{part['document']:,}"),
            ("source", f"{part['source']}: byte {part['offset']:,}"),
            ("tokens", f"{first - start:,} to {end - start:,} of {part['end'] - start:,}"),
            ("content hash", part["content_hash"]),
        ]
        text = _tokens(tokenizer, stream.read(first, end).tolist())
        parts += [_table(rows), f'<p class="text">{text}</p>']
    return _page(title, parts)


def _tokens(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """Each token in its own box; tokens that share a character share a box."""
    boxes = []
    group: list[int] = []
    for i in ids[:_MAX_TOKENS]:
        group.append(i)
        text = tokenizer.decode(group)
        if "\N{REPLACEMENT CHARACTER}" not in text or len(group) == 8:
            boxes.append(f'<span title="{" ".join(map(str, group))}">{escape(text)}</span>')
            group = []
    rest = [*group, *ids[_MAX_TOKENS:]]
    return "".join(boxes) + (escape(tokenizer.decode(rest)) if rest else "")


def _facts_table(found: dict[str, Any]) -> str:
    tokenizer = found["tokenizer"]
    copies = found["duplicates"]
    rows = [
        ("folder", found["store"]),
        ("fingerprint", found["fingerprint"]),
        (
            "tokenizer",
            f"{tokenizer['name']}, {tokenizer['length']:,} tokens, EOS {tokenizer['eos_token']} "
            f"({tokenizer['origin']})",
        ),
        ("encoder", f"{found['backend']['name']} {found['backend']['version']}"),
        ("shards", f"{found['shards']:,}"),
        ("exact copies", "not counted" if copies is None else f"{copies:,} documents"),
    ]
    for name, split in found["splits"].items():
        text = f"{split['documents']:,} documents, {split['tokens']:,} tokens, "
        text += f"{split['text_bytes']:,} bytes of text"
        if split["documents"]:
            text += f", {split['bytes_per_token']:.3f} bytes/token"
        rows.append((name, text))
    return _table(rows)


def _funnel(funnel: dict[str, Any]) -> str:
    total = max(1, funnel["read_records"])
    kept = funnel["kept_records"]
    characters = funnel["kept_characters"]
    lines = sorted(funnel["dropped"], key=lambda line: (-line["records"], line["reason"]))
    rows = [("read", funnel["read_records"], "", False)]
    for line in lines:
        name = line["reason"] + (" (bad)" if line["is_bad"] else "")
        rows.append((name, line["records"], f", {line['characters']:,} characters", True))
    rows.append(("kept", kept, f", {characters:,} characters", False))
    return _bars(
        (name, f"{n:,} ({n / total:.1%}){more}", n / total, is_dropped)
        for name, n, more, is_dropped in rows
    )


def _bars(rows: Iterable[tuple[str, str, float, bool]]) -> str:
    """Rows of (name, number, length of the bar from 0 to 1, whether it was dropped)."""
    cells = [
        f'<td>{escape(name)}</td><td class="bar"><div class="{"bad" if is_dropped else "good"}" '
        f'style="width: {share:.1%}"></div></td><td>{escape(number)}</td>'
        for name, number, share, is_dropped in rows
    ]
    return f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def _table(rows: Iterable[Sequence[str]]) -> str:
    cells = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    return f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>"


def _page(title: str, parts: Iterable[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f"<!doctype html>\n<html><head>{head}</head><body>{body}\n</body></html>\n"
