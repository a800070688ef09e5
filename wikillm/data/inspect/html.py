"""What `inspect` finds, as one HTML file: no script, no network, pictures as inline SVG.

Every text of a store is escaped: a document cannot become part of the page. Colours follow the reader's light or dark
setting; bars carry their numbers as text, so nothing is told by colour alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape as escape_html
from typing import Any

from wikillm.core.printable import printable
from wikillm.data.inspect.stats import stats_of
from wikillm.data.store.store import Store
from wikillm.data.tokenizer.tokenizer import TextTokenizer


def escape(text: str) -> str:
    """No text becomes a tag, a control character, or turns around what follows it."""
    return escape_html(printable(text))


_STYLE = """
:root { color-scheme: light dark; --bar: #3a6ea5; --bad: #b5533c; --line: #8884; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top;
       border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
.bar { fill: var(--bar); } .bad { fill: var(--bad); } .axis { stroke: currentColor; stroke-opacity: .4; }
pre, .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-bottom: 2px solid var(--bar); } .text span:nth-child(even) { border-color: var(--bad); }
"""
_WIDTH = 860
_MAX_TOKENS = 20_000  # shown with their borders; the rest of a text is shown plain


def stats_page(store: Store) -> str:
    """Lengths, funnel, sources, tokenizer and settings of a store."""
    found = stats_of(store)
    parts = [_facts_table(store, found)]
    for name, split in found["splits"].items():
        parts.append(f"<h2>{escape(name)}: tokens per document, EOS included</h2>")
        parts.append(_histogram(name, split) if split["documents"] else "<p>no documents</p>")
    parts += ["<h2>What became of the records</h2>", _funnel(found["funnel"])]
    rows = [
        [s.path, f"{s.size:,}", s.format, s.compression, s.sha256[:16]]
        for s in store.manifest.sources
    ]
    parts += [
        "<h2>Sources</h2>",
        _table(("file", "bytes", "format", "compression", "sha256"), rows, numbers={1}),
    ]
    settings = [
        [name, json.dumps(value, ensure_ascii=False)]
        for name, value in store.manifest.facts.items()
        if name != "data.path"
    ]
    parts += ["<h2>Settings that decide the store</h2>", _table(("key", "value"), settings)]
    return _page(f"Token store {store.manifest.fingerprint[:12]}", parts)


def show_page(store: Store, found: dict[str, Any]) -> str:
    """A document or a sample (as `inspect.show_document` and `show_sample` give it), with the borders of its tokens."""
    is_sample = "parts" in found
    title = (
        f"Sample {found['sample']}"
        if is_sample
        else f"Document {found['document']} of {found['split']}"
    )
    tokenizer, pieces = store.tokenizer(), []
    if is_sample:
        pieces.append(
            f"<p>{found['targets']} targets, sequence length {found['sequence_length']}, seed {found['seed']}</p>"
        )
    for part in found.get("parts", [found]):
        first, end = part.get("tokens", (part["first"], part["end"]))
        stream = store.train if is_sample else getattr(store, found["split"])
        ids = stream.read(first, end).tolist()
        rows = [
            ["document", f"{part['document']:,}"],
            ["source", f"{part['source']}: byte {part['offset']:,}"],
            [
                "tokens",
                f"{first - part['first']:,} to {end - part['first']:,} of {part['end'] - part['first']:,}",
            ],
            ["content hash", part["content_hash"]],
        ]
        pieces += [_table(("", ""), rows), f'<p class="text">{_tokens(tokenizer, ids)}</p>']
    return _page(title, pieces)


def _tokens(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """Each token in a box of its own; tokens that share a character share a box."""
    boxes, group = [], []
    for i in ids[:_MAX_TOKENS]:
        group.append(i)
        text = tokenizer.decode(group)
        if "\N{REPLACEMENT CHARACTER}" not in text or len(group) == 8:
            boxes.append(f'<span title="{" ".join(map(str, group))}">{escape(text)}</span>')
            group = []
    rest = [*group, *ids[_MAX_TOKENS:]]
    return "".join(boxes) + (escape(tokenizer.decode(rest)) if rest else "")


def _facts_table(store: Store, found: dict[str, Any]) -> str:
    tokenizer, copies = found["tokenizer"], found["duplicates"]
    rows = [
        ["folder", found["store"]],
        ["fingerprint", found["fingerprint"]],
        [
            "tokenizer",
            f"{tokenizer['name']}, {tokenizer['length']:,} tokens, EOS {tokenizer['eos_token']} ({tokenizer['origin']})",
        ],
        ["encoder", f"{found['backend']['name']} {found['backend']['version']}"],
        ["shards", f"{found['shards']:,}"],
        ["exact copies", "not counted" if copies is None else f"{copies:,} documents"],
    ]
    for name, split in found["splits"].items():
        text = f"{split['documents']:,} documents, {split['tokens']:,} tokens, {split['text_bytes']:,} bytes of text"
        rows.append(
            [
                name,
                text
                + (f", {split['bytes_per_token']:.3f} bytes/token" if split["documents"] else ""),
            ]
        )
    return _table(("", ""), rows)


def _histogram(name: str, split: dict[str, Any]) -> str:
    bins, length = split["histogram"], split["length"]
    most = max(bin["documents"] for bin in bins)
    width, height = _WIDTH / len(bins), 200
    shapes = []
    for i, bin in enumerate(bins):
        tall = height * bin["documents"] / most
        x = i * width
        shapes.append(
            f'<rect class="bar" x="{x + 2:.1f}" y="{30 + height - tall:.1f}" width="{width - 4:.1f}" height="{tall:.1f}">'
            f"<title>{bin['from']:,} to {bin['below'] - 1:,} tokens: {bin['documents']:,} documents</title></rect>"
            f'<text x="{x + width / 2:.1f}" y="{24 + height - tall:.1f}" text-anchor="middle">{bin["documents"]:,}</text>'
            f'<text x="{x + 2:.1f}" y="{46 + height}">{bin["from"]:,}</text>'
        )
    shapes.append(
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{30 + height}" y2="{30 + height}"/>'
    )
    text = (
        f"least {length['least']:,}, median {length['median']:,.0f}, mean {length['mean']:,.0f}, "
        f"99 % below {length['p99']:,.0f}, most {length['most']:,}"
    )
    return f"<p>{text}</p>{_svg(f'{name}: documents by length in tokens', height + 54, shapes)}"


def _funnel(funnel: dict[str, Any]) -> str:
    lines = sorted(funnel["dropped"], key=lambda line: (-line["records"], line["reason"]))
    rows = [("read", funnel["read_records"], None, "bar")]
    rows += [
        (
            line["reason"] + (" (bad)" if line["is_bad"] else ""),
            line["records"],
            line["characters"],
            "bad",
        )
        for line in lines
    ]
    rows.append(("kept", funnel["kept_records"], funnel["kept_characters"], "bar"))
    total, label, shapes = max(1, funnel["read_records"]), 260, []
    for i, (reason, records, characters, kind) in enumerate(rows):
        y, long = 26 * i, (_WIDTH - label - 260) * records / total
        more = "" if characters is None else f", {characters:,} characters"
        shapes.append(
            f'<text x="0" y="{y + 16}">{escape(reason[:40])}</text>'
            f'<rect class="{kind}" x="{label}" y="{y + 4}" width="{max(long, 0.5):.1f}" height="16"/>'
            f'<text x="{label + long + 6:.1f}" y="{y + 16}">{records:,} ({records / total:.1%}){more}</text>'
        )
    return _svg("records read, dropped by reason, and kept", 26 * len(rows) + 4, shapes)


def _svg(title: str, height: float, shapes: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img"><title>{escape(title)}</title>{"".join(shapes)}</svg>'


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int] | None = None
) -> str:
    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="n"' if i in (numbers or ()) else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    head = (
        "<tr>" + "".join(cell("th", i, text) for i, text in enumerate(header)) + "</tr>"
        if any(header)
        else ""
    )
    body = "".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def _page(title: str, parts: Iterable[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return (
        f"<!doctype html>\n<html><head>{head}</head><body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
