"""Find the documents in a range of tokens, or in the samples of a batch, and in their sources.

The corpus may be a mixture, or a store that is still being built. Only the indexes of the shards
that are read are mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wikillm.data.read.corpus import Corpus, Order
from wikillm.data.store.joined import JoinedStream
from wikillm.data.store.manifest import Manifest
from wikillm.data.store.store import TokenStream


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """A document and its position in the sources.

    `first` and `end` bound its tokens in the stream of its split, EOS included.
    """

    document: int
    first: int
    end: int
    source: str
    offset: int  # start of its record, in bytes of the decompressed source
    content_hash: str
    text_bytes: int


def documents_between(
    manifest: Manifest, stream: TokenStream, start: int, stop: int
) -> Iterator[SourcePosition]:
    """The documents with tokens in [start, stop) of `stream`, which belongs to this manifest."""
    for number, tokens, entry in stream.documents(start, stop):
        yield SourcePosition(
            document=number,
            first=tokens.start,
            end=tokens.stop,
            source=manifest.sources[int(entry["source"])].path,
            offset=int(entry["offset"]),
            content_hash=f"{int(entry['hash']):016x}",
            text_bytes=int(entry["text_bytes"]),
        )


def documents_of(corpus: Corpus, order: Order, samples: Sequence[int]) -> list[SourcePosition]:
    """The documents with targets in these samples, each once, in the order of the targets.

    `first` and `end` of a document count in the stream of its own store. Raises DataError if an
    index cannot be read.
    """
    found: dict[SourcePosition, None] = {}
    for ranges in order.target_ranges(samples):
        for start, stop in ranges:
            # Target t is token t + 1.
            for manifest, stream, first, last in _streams(corpus, start + 1, stop + 1):
                found.update(dict.fromkeys(documents_between(manifest, stream, first, last)))
    return list(found)


def _streams(
    corpus: Corpus, start: int, stop: int
) -> Iterator[tuple[Manifest, TokenStream, int, int]]:
    """The parts of the stores' streams that make up [start, stop) of the training stream."""
    if not isinstance(corpus.train, JoinedStream):
        yield corpus.manifest, corpus.train, start, stop
        return
    for number, first, last in corpus.train.parts(start, stop):
        yield corpus.mixture[number].store.manifest, corpus.train.streams[number], first, last
