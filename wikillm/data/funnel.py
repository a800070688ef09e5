"""The funnel: how many records were read, kept and dropped, by reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wikillm.data.types import CleanedDocuments, Dropped


@dataclass(frozen=True, slots=True)
class FunnelLine:
    """The number of records that were dropped for one reason.

    `characters` is their size: for bad records the bytes of the raw records, for records that a
    filter dropped the characters of the clean text, for others the characters of the raw text.
    """

    __pydantic_config__ = {"extra": "forbid"}  # read from files, see `store.manifest`
    reason: str
    records: int
    characters: int
    is_bad: bool


@dataclass(frozen=True, slots=True)
class Funnel:
    """Counts of kept and dropped records; `kept_characters` counts the characters of clean text."""

    __pydantic_config__ = {"extra": "forbid"}
    kept_records: int = 0
    kept_characters: int = 0
    dropped: tuple[FunnelLine, ...] = ()

    @property
    def read_records(self) -> int:
        return self.kept_records + sum(line.records for line in self.dropped)

    @property
    def bad_records(self) -> int:
        return sum(line.records for line in self.dropped if line.is_bad)

    @property
    def bad_bytes(self) -> int:
        """Bytes of the bad records in the decompressed sources."""
        return sum(line.characters for line in self.dropped if line.is_bad)

    def table(self) -> str:
        """One line per reason, the most frequent first, then the kept records."""
        rows = [("read", self.read_records, "")]
        for line in sorted(self.dropped, key=lambda line: (-line.records, line.reason)):
            name = f"- {line.reason}" + (" (bad)" if line.is_bad else "")
            rows.append((name, line.records, f"{line.characters:,}"))
        rows.append(("kept", self.kept_records, f"{self.kept_characters:,}"))
        total = max(1, self.read_records)
        width = max(len(name) for name, _, _ in rows)
        head = f"{'':<{width}}  {'records':>12}  {'share':>6}  {'characters':>16}"
        lines = [
            f"{name:<{width}}  {n:>12,}  {n / total:>6.1%}  {characters:>16}"
            for name, n, characters in rows
        ]
        return "\n".join([head, *lines])


def merged(funnels: Iterable[Funnel]) -> Funnel:
    """The sum of several funnels. Their order does not matter."""
    tally = Tally()
    for funnel in funnels:
        tally.kept_records += funnel.kept_records
        tally.kept_characters += funnel.kept_characters
        for line in funnel.dropped:
            tally.add(line.reason, line.records, line.characters, line.is_bad)
    return tally.funnel()


@dataclass(slots=True)
class Tally:
    """The counts of a funnel while records are read."""

    kept_records: int = 0
    kept_characters: int = 0
    _dropped: dict[str, tuple[int, int, bool]] = field(default_factory=dict)

    def count(self, cleaned: CleanedDocuments) -> None:
        self.keep(cleaned.texts)
        for item in cleaned.dropped:
            self.drop(item.why)

    def keep(self, texts: Sequence[str]) -> None:
        self.kept_records += len(texts)
        self.kept_characters += sum(map(len, texts))

    def drop(self, why: Dropped) -> None:
        self.add(why.reason, 1, why.characters, why.is_bad)

    def add(self, reason: str, records: int, characters: int, is_bad: bool) -> None:
        known_records, known_characters, _ = self._dropped.get(reason, (0, 0, is_bad))
        self._dropped[reason] = (known_records + records, known_characters + characters, is_bad)

    def funnel(self) -> Funnel:
        lines = (FunnelLine(reason, *counts) for reason, counts in sorted(self._dropped.items()))
        return Funnel(self.kept_records, self.kept_characters, tuple(lines))
