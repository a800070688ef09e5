"""The section `data`: sources, tokenizer, token store, and the processing of the text before
tokenization."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from wikillm.config.schema_types import Backend, Packing, Paths, Section, Size

Format = Literal["auto", "jsonl", "json", "mediawiki", "text", "blocks", "lines", "csv", "parquet"]


class MixtureSource(Section):
    """One source of `data.mixture`. Keys that are not set take the value of the data section."""

    name: str = Field(pattern=r"^[\w][\w.\-]*$")
    """Name of the source in the log and in metrics.jsonl."""
    weight: float
    """Share of the samples, relative to the other weights; weights below 1 must sum to 1."""
    path: Paths = ()
    """Sources, as in data.path."""
    store: str | None = None
    """Token store, as in data.store."""
    format: Format | None = None
    """Format, as in data.format."""
    text_key: str | None = None
    """Key or column of the text, as in data.text_key."""


def _read_mixture(value: Any) -> Any:
    """Accept `NAME:WEIGHT:PATH`, as on the command line, and mappings of the fields."""
    value = (value,) if isinstance(value, (str, dict)) else value
    return tuple(_read_source(part) if isinstance(part, str) else part for part in value)


def _read_source(text: str) -> dict[str, str]:
    name, weight, path = (text.split(":", 2) + ["", ""])[:3]
    if not path:
        raise ValueError(
            f"{text!r} is not NAME:WEIGHT:PATH, as in wiki:3:data/wiki.jsonl,web:1:data/web/ "
            "(write a path with a comma as a list: {name: wiki, weight: 3, path: ['a,b.jsonl']})"
        )
    return {"name": name, "weight": weight, "path": path}


Mixture = Annotated[
    tuple[MixtureSource, ...],
    BeforeValidator(
        _read_mixture, json_schema_input_type=str | MixtureSource | list[str | MixtureSource] | None
    ),
]


class DataSection(Section):
    preset: str | None = None
    """A data preset (`wikillm presets`)."""
    path: Paths = ()
    """File, folder or glob: .jsonl, .json, .csv, .txt, MediaWiki .xml, each also .gz, .bz2, .xz or
    .zst; .parquet."""
    mixture: Mixture = ()
    """Several weighted sources, instead of data.path: wiki:3:data/wiki.jsonl,web:1:data/web/, or a
    list in YAML."""
    format: Format = "auto"
    """Format of the sources; auto detects it. A document is a file (text), a line (lines), or the
    text between blank lines (blocks)."""
    text_key: str = "text"
    """Key or column of the document's text."""
    licence: str | None = None
    """Licence of the sources, such as cc-by-sa-4.0, for the model card of an export. Default:
    unknown."""
    tokenizer: str = "auto"
    """auto, qwen2, a folder with tokenizer.json, or train:8000 for a byte-level BPE of that size
    trained on this corpus."""
    backend: Backend = "auto"
    """Tokenizer library; auto uses fastokens if it is installed and gives the same ids as hf."""
    store: str | None = None
    """Folder of the token store. Default: stores/FINGERPRINT, shared by all runs on the same
    data."""
    cache: str | None = None
    """Folder for files from http(s)://, s3://, oss:// and hubs. Default:
    ~/.cache/wikillm/remote."""
    cache_bytes: Size | None = None
    """Size limit of data.cache; the least recently used files are removed first. Default: the free
    space of the disk."""
    workers: int | None = Field(default=None, ge=1, le=1024)
    """Processes that clean and tokenize; the number does not change the result. Default: one per
    core."""
    shard_bytes: Size | None = None
    """Bytes of decompressed source per shard. Default: 1/64 of the source, from 1 MiB to 64 MiB."""
    verify: Literal["off", "first_use"] = "first_use"
    """first_use compares the sha256 of each shard with the store's manifest before a rank first
    reads the shard."""
    streaming: Literal["auto", "on", "off"] = "auto"
    """Train while the store is being built; auto is on if the store has more than one window and
    the horizon is in steps."""
    window_shards: int = Field(default=8, ge=1, le=2**31)
    """Shards per window. The first epoch of a streamed run shuffles one window at a time, and
    training starts when the first window is built."""
    packing: Packing = "concat"
    """concat cuts the text every sequence_length tokens; best_fit keeps documents whole if they
    fit, with some padding."""
    stall_seconds: float = Field(default=900.0, gt=0)
    """End the run if training waits for a shard and the build adds no shard for this long."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Share of documents held out for validation, chosen by content hash; auto is 0.1 below 256 MB
    of source, 0.005 above."""
    min_val_tokens: int = Field(default=10_000, ge=1)
    """Refuse a run with fewer held-out tokens than this: the validation loss would be too noisy."""
    max_text_bytes: Size | None = None
    """Read only this many bytes of text, in whole documents. Default: all."""
    max_document_bytes: Size = 16 * 2**20
    """Drop longer documents, and count them in the funnel."""
    max_field_lines: int = Field(default=1000, ge=1, le=10_000_000)
    """CSV: refuse a quoted field with more lines (or KiB) than this, which a missing quote would
    cause."""
    convert: Literal["none", "t2s", "tw2s", "tw2sp", "hk2s"] = "none"
    """Convert to simplified Chinese with OpenCC: t2s converts characters, tw2sp also Taiwan's
    words. Needs wikillm[wiki]."""
    protected_terms: str | None = None
    """File of terms, one per line, that data.convert does not change."""
    quality: Literal["none", "basic", "zh", "en"] = "none"
    """Drop texts that are too short, repetitive, lists or symbols; zh and en also drop other
    scripts."""
    decontaminate: Paths = ()
    """Evaluation files (.jsonl, .json, .csv, or .txt with one example per line): drop documents
    that contain an example."""
    decontaminate_units: int = Field(default=13, ge=5, le=100)
    """Length, in words or hanzi, of the n-grams that data.decontaminate compares."""
    decontaminate_share: float = Field(default=0.5, gt=0, le=1)
    """Share of an example's n-grams that a document must contain to be dropped."""
    dedup: Literal["none", "exact", "minhash"] = "none"
    """Drop duplicates of earlier documents: exact, or minhash for near duplicates too (needs
    wikillm[wiki]). Reads the sources twice."""
    dedup_similarity: float = Field(default=0.8, ge=0.7, le=1)
    """For minhash: two documents are duplicates if the Jaccard similarity of their 5-grams (words
    or hanzi) is at least this."""
    drop_list: str | None = None
    """List of duplicates to drop, written by `wikillm prepare --drop-list-only FILE` for the same
    sources."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """End the build if a larger share of the records cannot be read."""
