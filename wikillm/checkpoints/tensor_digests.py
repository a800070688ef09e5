"""Records and verifies digests of the tensor files.

Every rank records the byte ranges that it wrote in `ranks/rank_00000.json`, named by its number.
The record has groups of ranges, and for each group one digest over its ranges in order. Together
the groups cover every byte of every tensor file exactly once, headers included. So any number of
processes can verify a checkpoint, each a part of the groups.

The digest is XXH3-128: it finds accidental damage as sha256 does, ten times faster
(docs/measurements/2026-11-28-checkpoints.md). Neither digest proves who wrote a checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.faults import is_of_the_file

RANKS = "ranks"
GROUP_BYTES = 16 << 20
"""Size of a group: short ranges are joined, and long ranges cut, to about this size."""
THREADS = 4

Extent = tuple[int, int, int]
"""(number of the file, first byte, byte after the last)."""


Group = tuple[Extent, ...]
"""Byte ranges of one file with a common digest, in the order in which they were hashed."""


def group_extents(extents: Sequence[Extent], group_bytes: int = GROUP_BYTES) -> list[Group]:
    """Divide `extents`, in order, into groups of at most `group_bytes`, each in one file."""
    groups: list[list[Extent]] = []
    free = 0  # bytes that the last group can still take
    for file, begin, end in extents:
        start = begin
        while start < end:
            # A group begins where the group before it is full, and where a file begins.
            if not free or groups[-1][0][0] != file:
                groups.append([])
                free = group_bytes
            stop = min(end, start + free)
            groups[-1].append((file, start, stop))
            free -= stop - start
            start = stop
    return [tuple(group) for group in groups]


def rank_file(rank: int) -> str:
    """Path of a rank's record, relative to the checkpoint."""
    return f"{RANKS}/rank_{rank:05d}.json"


def digests_to_json(files: Sequence[str], digests: Mapping[Group, str]) -> dict[str, Any]:
    """Digests as JSON for a rank's record; extents refer to `files` by number."""
    return {"files": list(files), "groups": [[d, group] for group, d in digests.items()]}


@contextmanager
def open_files(checkpoint: Path, names: Sequence[str], flags: int) -> Iterator[list[int]]:
    """File descriptors of the tensor files, closed at the end of the block."""
    opened: list[int] = []
    try:
        for name in names:
            opened.append(os.open(checkpoint / name, flags | os.O_CLOEXEC))
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def read_extents(fd: int, extents: Sequence[Extent]) -> memoryview:
    """The bytes of these ranges of a file, one after the other; truncated at the file's end."""
    data = memoryview(bytearray(sum(stop - start for _, start, stop in extents)))
    at = 0
    for _, begin, stop in extents:
        start = begin
        while start < stop:
            count = os.preadv(fd, [data[at : at + stop - start]], start)
            if not count:
                return data[:at]
            at += count
            start += count
    return data


def verify_tensors(
    checkpoint: Path,
    sizes: Mapping[str, int],
    *,
    rank: int = 0,
    ranks: int = 1,
    kept: VerifiedBytes | None = None,
) -> list[str]:
    """Verify a part of the tensor files; returns one line per damaged file.

    Args:
        sizes: bytes of each tensor file, from the manifest.
        rank, ranks: this process verifies part `rank`, of `ranks` parts. If `ranks` ranks wrote the
            checkpoint, the part is what rank `rank` wrote, because this process will load it.
        kept: receives the bytes that this process has verified.
    """
    # Read the records of all ranks, which are small.
    try:
        recorded = [_read_rank(path) for path in sorted((checkpoint / RANKS).glob("rank_*.json"))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if not is_of_the_file(error):
            raise
        return [f"{RANKS}/: cannot be read ({error!r})"]
    # This process's part: the groups of one rank, or every n-th group of each rank.
    work = [
        (files, group, digest)
        for number, (files, groups) in enumerate(recorded)
        for at, (group, digest) in enumerate(groups)
        if (number if len(recorded) == ranks else at) % ranks == rank
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        damaged = set(pool.map(lambda each: _damage(checkpoint, each, kept), work))
    wrong = [f"{name}: its content changed (digest differs)" for name in sorted(damaged - {""})]
    return wrong if rank else _coverage_errors(recorded, sizes) + wrong


def _read_rank(path: Path) -> tuple[list[str], list[tuple[Group, str]]]:
    recorded = json.loads(path.read_text(encoding="utf-8"))["digests"]
    groups = [
        (tuple((int(f), int(a), int(b)) for f, a, b in extents), str(digest))
        for digest, extents in recorded["groups"]
    ]
    return [str(name) for name in recorded["files"]], groups


def _damage(
    checkpoint: Path, work: tuple[Sequence[str], Group, str], kept: VerifiedBytes | None
) -> str:
    """The name of the group's file if the content of the group has changed, else ""."""
    files, group, digest = work
    name = files[group[0][0]]
    try:
        with open_files(checkpoint, [name], os.O_RDONLY) as fds:
            data = read_extents(fds[0], group)
    except OSError as error:
        if not is_of_the_file(error):
            raise
        return name
    if xxh3_128_hexdigest(data) != digest:
        return name
    if kept is not None:
        kept.add(name, [(start, stop) for _, start, stop in group], data)
    return ""


def _coverage_errors(recorded: Sequence[Any], sizes: Mapping[str, int]) -> list[str]:
    """A line for each tensor file of which a byte has no digest, or more than one."""
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
    for files, groups in recorded:
        for group, _ in groups:
            for file, start, stop in group:
                ranges.setdefault(files[file], []).append((start, stop))
    wrong = []
    for name, found in ranges.items():
        at = 0
        for start, stop in sorted(found):
            if start != at:
                break
            at = stop
        if at != sizes.get(name):
            wrong.append(f"{name}: the digests do not cover it from byte {at:,}")
    return wrong
