"""Read several token streams, one after the other, as a single stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.data.store.store import TokenStream


class JoinedStream(TokenStream):
    """The concatenation of several streams: of stream k the first `limits[k]` tokens, or all."""

    def __init__(
        self, folder: Path, streams: Sequence[TokenStream], limits: Sequence[int] | None = None
    ) -> None:
        super().__init__(folder, "", ())
        self.streams = tuple(streams)
        sizes = [stream.n_tokens for stream in streams] if limits is None else list(limits)
        self._starts = [0, *(int(end) for end in np.cumsum(sizes))]
        self.n_tokens = self._starts[-1]
        self.n_documents = sum(stream.n_documents for stream in streams)
        self.text_bytes = sum(stream.text_bytes for stream in streams)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        self._check(start, stop)
        pieces = [self.streams[k].read(first, last) for k, first, last in self.parts(start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty(0, dtype=np.uint32), *pieces])

    def document_ends(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        stop = self.n_tokens if stop is None else stop
        self._check(start, stop)
        found = [
            self.streams[k].document_ends(first, last) + self._starts[k]
            for k, first, last in self.parts(start, stop)
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def indexes(self) -> Iterator[npt.NDArray[Any]]:
        for stream in self.streams:
            yield from stream.indexes()

    def verify_on_first_use(self) -> None:
        for stream in self.streams:
            stream.verify_on_first_use()
