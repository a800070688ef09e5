"""Find evaluation examples in a text, by hashes of runs of units (words, hanzi).

An example is one record of a JSON file (all its strings), one row of a CSV file, or one line of
plain text. A text is dropped when it has at least `share` of the distinct runs of an example, in
any place. An example shorter than a run is searched as a whole. Examples below `MIN_UNITS` are
ignored, since they occur in ordinary text. Case, punctuation and white space do not matter. Memory:
24 bytes per run of the evaluation files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import orjson

from wikillm.core.errors import DataError
from wikillm.data.filters.characters import Hashes, grams_of, units_of
from wikillm.data.filters.settings import PinnedFile
from wikillm.data.sources.read import items_of
from wikillm.data.sources.sniff import sniff
from wikillm.data.sources.tables import parse_row

MIN_UNITS = 5
_MAX_EXAMPLE_BYTES = 16 << 20


class EvaluationIndex:
    """The hashes of the runs of all examples, sorted, each with the number of its example."""

    def __init__(
        self,
        files: tuple[PinnedFile, ...],
        units: int,
        share: float,
        convert: Callable[[str], str] = str,
    ) -> None:
        """Examples are normalized to NFC and converted, as texts are before they are searched."""
        self._units = units
        self._share = share
        self.names: list[str] = []  # FILE:NUMBER of each example
        runs: list[Hashes] = []
        owners: list[npt.NDArray[np.int64]] = []
        lengths: set[int] = set()
        for file in files:
            for number, strings in enumerate(examples_of(file), 1):
                cleaned = [convert(normalize("NFC", string)) for string in strings]
                own_runs = self._runs_of_example(cleaned, lengths)
                if not len(own_runs):
                    continue
                runs.append(own_runs)
                owners.append(np.full(len(own_runs), len(self.names)))
                self.names.append(f"{file.path}:{number}")
        if not runs:
            raise DataError(
                "The files of data.decontaminate have no example that is long enough to search.",
                got=", ".join(file.path for file in files),
                fix=f"name files with examples of at least {MIN_UNITS} words or hanzi",
            )
        all_runs = np.concatenate(runs)
        owner = np.concatenate(owners)
        order = np.argsort(all_runs, kind="stable")
        self._runs = all_runs[order]
        self._owners = owner[order]
        self._sizes = np.bincount(owner, minlength=len(self.names))
        self._lengths = tuple(sorted(lengths))

    def _runs_of_example(self, strings: list[str], lengths: set[int]) -> Hashes:
        """The distinct runs of an example, if it is long enough; adds their length to `lengths`."""
        parts = [units for string in strings if len(units := units_of(string)) >= self._units]
        if not parts:  # a question and its answer may be long enough only together
            together = units_of("\n".join(strings))
            parts = [together] if len(together) >= MIN_UNITS else []
        grams = [grams_of(units, self._units) for units in parts]
        lengths.update(min(self._units, len(units)) for units in parts)
        return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *grams]))

    def find(self, text: str) -> str | None:
        """The name of the first example that the text contains, or None."""
        units = units_of(text)
        grams_by_length = [
            grams_of(units, length) for length in self._lengths if len(units) >= length
        ]
        if not grams_by_length:
            return None
        grams = np.unique(np.concatenate(grams_by_length))
        # Find the examples that have a run of the text; count the found runs of each example.
        first = np.searchsorted(self._runs, grams, side="left")
        last = np.searchsorted(self._runs, grams, side="right")
        matching = np.flatnonzero(last > first)
        if not len(matching):
            return None
        owners = [self._owners[first[i] : last[i]] for i in matching]
        examples, counts = np.unique(np.concatenate(owners), return_counts=True)
        contained = examples[counts >= self._share * self._sizes[examples]]
        return self.names[int(contained[0])] if len(contained) else None


def examples_of(file: PinnedFile) -> Iterator[list[str]]:
    """The strings of each example.

    Raises DataError for a format without examples, and for an example that cannot be parsed.
    """
    file.check()
    source = sniff(Path(file.path))
    if source.format not in ("json", "jsonl", "csv", "text"):
        raise DataError(
            f"A file of data.decontaminate is {source.format}.",
            got=file.path,
            fix="use JSON Lines, a JSON array, CSV, or plain text with one example per line",
        )
    # In a plain text each line is an example; as a source, the text would be one document.
    if source.format == "text":
        source = replace(source, format="lines")
    for number, (offset, payload, _) in enumerate(items_of(source, 0, _MAX_EXAMPLE_BYTES)):
        if payload is None:
            got = f"{file.path}: byte {offset}, above {_MAX_EXAMPLE_BYTES} bytes"
            raise DataError("An example is too long.", got=got)
        try:
            if source.format == "lines":
                yield [payload.decode("utf-8-sig")]
            elif source.format == "csv":
                yield list(parse_row(payload).values())
            else:
                yield list(_strings(orjson.loads(payload.removeprefix(b"\xef\xbb\xbf"))))
        except ValueError as error:
            got = f"{file.path}: record {number + 1}: {error}"
            raise DataError("An evaluation file cannot be read.", got=got) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
