"""Refuse sources of which too many records cannot be read (`data.max_bad_fraction`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.filters.documents import TOO_LONG
from wikillm.data.funnel import Funnel, FunnelLine, merged

_CHECK_RECORDS = 1000  # records to read before the share of bad records is checked
_CHECK_BYTES = 64 << 20  # bytes to read before the share of bad bytes is checked


@dataclass(slots=True)
class BadRecords:
    """Compares the share of bad records, and of their bytes, with the limit."""

    max_fraction: float
    _funnel: Funnel = Funnel()  # of all shards that were added
    _read_bytes: int = 0

    def add(self, funnel: Funnel, source_bytes: int) -> None:
        """Add the counts of a shard; `check` then compares them with the limit."""
        self._funnel = merged([self._funnel, funnel])
        self._read_bytes += source_bytes

    def check(
        self, *, at_end: bool, examples: Callable[[], Sequence[str]] = tuple, fix: str | None = None
    ) -> None:
        """Raise DataError when the share of bad records or bytes is above `max_fraction`.

        Args:
            at_end: check even if little was read.
            examples: returns lines to add to the error.
        """
        limit = self.max_fraction
        funnel = self._funnel
        share = funnel.bad_records / max(1, funnel.read_records)
        byte_share = min(1.0, funnel.bad_bytes / max(1, self._read_bytes))
        by_records = share > limit and (at_end or funnel.read_records >= _CHECK_RECORDS)
        by_bytes = byte_share > limit and (at_end or self._read_bytes >= _CHECK_BYTES)
        if not by_records and not by_bytes:
            return
        bad = [line for line in funnel.dropped if line.is_bad]
        reasons = [
            f"{line.records:>8,}  {line.reason} ({format_size(line.characters)})" for line in bad
        ]
        what = f"{funnel.bad_records:,} of {funnel.read_records:,} records cannot be read"
        if not by_records:
            what += f", and they are {byte_share:.1%} of the bytes"
        raise DataError(
            f"{what}: more than data.max_bad_fraction={limit:g}.",
            got="\n".join([*reasons, *examples()]),
            fix=fix or _fix(bad, max(share, byte_share)),
        )


def _fix(bad: Sequence[FunnelLine], share: float) -> str:
    """The setting that accepts this share of bad records, and for long records a larger limit."""
    rounded_up = min(1.0, -(-share * 1000 // 1) / 1000)
    fix = f"repair the source, or continue without them: data.max_bad_fraction={rounded_up}"
    too_long = sum(line.characters for line in bad if line.reason == TOO_LONG)
    if too_long:
        fix = f"data.max_document_bytes={min(too_long, 2**32 - 1)}\nor {fix}"
    return fix
