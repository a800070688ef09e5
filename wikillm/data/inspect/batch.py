"""Find the documents in the samples of a batch, with their positions in the sources.

Works on every corpus, including a mixture and a store that is still being built. Only the indexes
of the shards that the samples read are mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wikillm.data.inspect.stats import SourcePosition, documents_between
from wikillm.data.read.corpus import Corpus, Order
from wikillm.data.store.joined import JoinedStream
from wikillm.data.store.manifest import Manifest
from wikillm.data.store.store import TokenStream


def documents_of(corpus: Corpus, order: Order, samples: Sequence[int]) -> list[SourcePosition]:
    """The documents with targets in these samples, each once, in the order of the targets.

    Positions count in the stream of the document's own store. Raises DataError if an index cannot
    be read.
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
