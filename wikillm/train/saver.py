"""Saves checkpoints in the background: training waits only for the copy to host memory.

On the training thread every rank copies the ranges it owns (12 bytes per parameter with AdamW,
divided by the number of ranks) into its buffer. Then a background thread hashes and writes the
buffer, the ranks exchange manifest entries on a separate process group, and rank 0 seals and
publishes the checkpoint. The buffer is reused: a save begins after the previous save has ended.
When host memory is short, the buffer is small and training waits for the whole save.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from wikillm.checkpoints.layout import STATE, TRAINER_STATE, checkpoint_name
from wikillm.checkpoints.lineage import Ancestry, arrange, next_ancestry
from wikillm.checkpoints.manifest import (
    FileEntry,
    files_to_list,
    seal_files,
    tensor_entry,
    write_manifest,
)
from wikillm.checkpoints.retention import Keep, publish, rotate
from wikillm.checkpoints.tensor_digests import (
    RANKS,
    Extent,
    Group,
    digests_to_json,
    rank_file,
)
from wikillm.checkpoints.tensor_files import create_files, write_part
from wikillm.checkpoints.tensor_layout import (
    FILES,
    ITEM,
    TensorLayout,
    TensorSpec,
    lay_out,
    weight_index,
)
from wikillm.core.errors import DivergedError, WikiLLMError
from wikillm.core.files import files_below, write_json
from wikillm.core.log import say, warn
from wikillm.core.memory import available_memory
from wikillm.core.units import format_size
from wikillm.core.world import World
from wikillm.train.checkpoint_errors import saving
from wikillm.train.collectives import ControlGroup
from wikillm.train.fragments.state import Fragment
from wikillm.train.random_state import random_state

PIECE_BYTES = 256 << 20
"""Buffer size when host memory is short."""
_GATHER_TIMEOUT = timedelta(hours=6)
"""Long enough for the slowest rank's disk; the supervisor watches for hangs."""

Part = tuple[Extent, Fragment]  # a byte range of a file, and the values for it
Copied = tuple[list[Extent], memoryview]  # byte ranges, and their bytes one after the other
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """The files that rank 0 writes besides the tensors.

    Attributes:
        run_state: content of wikillm_state.json.
        trainer_state: Hugging Face's trainer_state.json, as text.
        model: transformers model whose config.json and generation_config.json are written.
    """

    run_state: dict[str, Any]
    trainer_state: str
    model: Any

    def write(self, folder: Path) -> None:
        write_json(folder / STATE, self.run_state)
        (folder / TRAINER_STATE).write_text(self.trainer_state, encoding="utf-8")
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        config.dtype = self.model.dtype
        config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)


@dataclass(slots=True)
class _Job:
    """One save under way on this rank."""

    step: int
    layout: TensorLayout
    random: dict[str, Any]
    small: SmallFiles | None  # on rank 0
    digests: dict[Group, str] = field(default_factory=dict)


class CheckpointSaver:
    """Writes the checkpoints of a run. (all ranks)

    Attributes:
        origin: ancestry of the checkpoint that this run resumed from or wrote last.
        longest_seconds: duration of the longest save, from its first copy to its publication,
            earlier starts included; 0 if unknown.
    """

    def __init__(
        self, folder: Path, staging: Path, world: World, keep: Keep, origin: Ancestry | None
    ) -> None:
        self.folder = folder
        self.staging = staging
        self.world = world
        self.keep = keep
        self.origin = origin
        self.longest_seconds = 0.0
        self.group = ControlGroup(_GATHER_TIMEOUT)
        self._buffer = torch.empty(0)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether `finish` would raise. The ranks vote on this after every step."""
        return self._error is not None

    def save(
        self,
        step: int,
        specs: Iterable[TensorSpec],
        fragments: Iterable[Fragment],
        small: SmallFiles | None,
    ) -> None:
        """Copy this rank's fragments, and write them in the background. (all ranks)

        Args:
            specs: all tensors of the training state, whose fragments are spread over the ranks.
            fragments: the ranges of those tensors that this rank writes.
            small: the small files on rank 0; None on other ranks.

        Raises MachineError when this or the previous save failed on any rank, DivergedError when a
        value is not finite.
        """
        self.finish()
        began = time.monotonic()
        job = _Job(step, lay_out(specs), random_state(), small)
        parts = _in_file_order(fragments, job.layout)
        size = ITEM * sum(fragment.values.numel() for _, fragment in parts)
        if self._fits(size):
            copied = [self._copy_to_buffer(parts, size)]
            self._thread = threading.Thread(
                target=self._run, args=(job, copied, began), name="saver", daemon=True
            )
            self._thread.start()
        else:
            self._run(job, (self._copy_to_buffer(*piece) for piece in _pieces(parts)), began)
            self.finish()

    def finish_within(self, seconds: float | None) -> None:
        """Wait up to `seconds` (None: as long as it takes) for the save under way to be published.

        Never raises.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                warn(f"the checkpoint being saved was not complete after {seconds:.0f} s")

    def finish(self) -> None:
        """Wait until the save under way is published. (all ranks)

        Raises MachineError when it failed on any rank.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error = self._error
            self._error = None
            raise error

    def make_room(self) -> None:
        """Remove checkpoints above a save_total_limit that was lowered. (rank 0)"""
        if self.origin is None or not self.world.is_main:
            return
        spare = self.folder / checkpoint_name(self.origin.position.step)
        for path in rotate(self.folder, self.keep, spare):
            say(f"removed {path}: train.save_total_limit={self.keep.newest}")

    def _fits(self, size: int) -> bool:
        """Whether `size` bytes for each rank of this node fit into its memory, with a margin."""
        needed = _allocated(size) + size / 2
        has_room = available_memory() > needed * self.world.local_size
        return has_room or self._buffer.nbytes >= size

    def _copy_to_buffer(self, parts: Sequence[Part], size: int) -> tuple[list[Extent], memoryview]:
        """Copy `parts` into the buffer; returns their byte ranges and the filled buffer."""
        if self._buffer.nbytes < size:
            self._buffer = torch.empty(0)  # free the old buffer before allocating a larger one
            on_gpu = torch.cuda.is_available()
            self._buffer = torch.empty(size // ITEM, dtype=torch.float32, pin_memory=on_gpu)
        end = 0
        for _, fragment in parts:
            start = end
            end += fragment.values.numel()
            self._buffer[start:end].copy_(fragment.values, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [extent for extent, _ in parts], self._buffer[:end].numpy().data.cast("B")

    def _run(self, job: _Job, pieces: Iterable[Copied], began: float) -> None:
        """Write and publish a save. An error is kept for `finish` to raise.

        Args:
            pieces: the copied values, produced one at a time while the last one is written.
            began: `time.monotonic()` at the start of the save.
        """
        try:
            self._on_all_ranks(job, lambda: self._prepare(job))
            entries = self._on_all_ranks(job, lambda: self._write(job, pieces))
            files = {name: entry for part in entries for name, entry in part.items()}
            self._on_all_ranks(job, lambda: self._publish(job, files))
        except Exception as error:
            self._error = error
            if self.world.is_main:
                shutil.rmtree(self.staging / checkpoint_name(job.step), ignore_errors=True)
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    def _on_all_ranks(self, job: _Job, work: Callable[[], Result]) -> list[Result]:
        """Run `work` on every rank and return all results; any rank's error is raised on all."""
        result: Result | None = None
        error: Exception | None = None
        try:
            with saving(self.staging, job.step):
                result = work()
        except Exception as caught:
            error = caught
        reported = error if isinstance(error, WikiLLMError) else repr(error) if error else None
        gathered: list[Any] = self.group.gather((result, reported))
        if error is not None:
            raise error
        for rank, (_, rank_error) in enumerate(gathered):
            if isinstance(rank_error, WikiLLMError):
                raise rank_error
            if rank_error is not None:
                raise RuntimeError(f"saving step {job.step} failed on rank {rank}: {rank_error}")
        return [rank_result for rank_result, _ in gathered]

    def _prepare(self, job: _Job) -> None:
        """Create the staging folder and its tensor files at their full sizes. (rank 0)"""
        if self.world.is_main:
            staged = self.staging / checkpoint_name(job.step)
            shutil.rmtree(staged, ignore_errors=True)
            (staged / RANKS).mkdir(parents=True)
            job.digests |= create_files(staged, job.layout)

    def _write(self, job: _Job, pieces: Iterable[Copied]) -> dict[str, FileEntry]:
        """Write this rank's ranges, then its record: their digests and the random state."""
        staged = self.staging / checkpoint_name(job.step)
        names = [file.name for file in job.layout.files]
        _wait_for([staged / name for name in names])
        for extents, data in pieces:
            _check_finite(job.step, data)
            job.digests |= write_part(staged, job.layout, extents, data)
        record = {"random": job.random, "digests": digests_to_json(names, job.digests)}
        name = rank_file(self.world.rank)
        (staged / name).write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
        return seal_files(staged, [name])

    def _publish(self, job: _Job, entries: dict[str, FileEntry]) -> None:
        """Seal the checkpoint, give it its name, and remove old ones. (rank 0)"""
        if job.small is None:
            return
        staged = self.staging / checkpoint_name(job.step)
        job.small.write(staged)
        for kind, stem in FILES.items():
            if (index := weight_index(job.layout, kind)) is not None:
                write_json(staged / f"{stem}.safetensors.index.json", index)
        sizes = {file.name: file.size for file in job.layout.files}
        rest = [n for n in files_to_list(staged) if n not in entries and n not in sizes]
        entries |= seal_files(staged, rest)
        entries |= {name: tensor_entry(size) for name, size in sizes.items()}
        ancestry = next_ancestry(self.folder, job.step, self.origin)
        values = {"step": job.step, "world_size": self.world.size, **ancestry.to_json()}
        write_manifest(staged, entries, values)
        final = self.folder / checkpoint_name(job.step)
        publish(staged, final)
        self.origin = ancestry
        size = sum(path.stat().st_size for path in files_below(final))
        say(f"saved {final}  {format_size(size)}")
        self._rotate()

    def _rotate(self) -> None:
        """Remove checkpoints above the limit, and log the removed ones that were abandoned."""
        abandoned = set(arrange(self.folder).abandoned)
        for path in rotate(self.folder, self.keep):
            if path in abandoned:
                say(f"removed {path}, which the run had abandoned")


def _allocated(size: int) -> int:
    """Memory of a buffer of `size` bytes: torch rounds pinned memory up to a power of two."""
    return 1 << (size - 1).bit_length() if torch.cuda.is_available() else size


def _in_file_order(fragments: Iterable[Fragment], layout: TensorLayout) -> list[Part]:
    """Pair each fragment with its byte range in the files, in the order of the files."""
    parts = []
    for fragment in fragments:
        stop = fragment.start + fragment.values.numel()
        parts.append((layout.extent(fragment.spec, fragment.start, stop), fragment))
    return sorted(parts, key=lambda part: part[0])


def _pieces(parts: Sequence[Part]) -> Iterator[tuple[list[Part], int]]:
    """Batches of about `PIECE_BYTES` of `parts`, each with its size; larger fragments are cut."""
    piece: list[Part] = []
    size = 0
    for (file, first, _), fragment in parts:
        for values in fragment.values.split(PIECE_BYTES // ITEM):
            stop = first + values.numel() * ITEM
            piece.append(((file, first, stop), replace(fragment, values=values)))
            size += stop - first
            first = stop
            if size >= PIECE_BYTES:
                yield piece, size
                piece = []
                size = 0
    if piece:
        yield piece, size


def _check_finite(step: int, data: memoryview) -> None:
    """Raises DivergedError for NaN or infinity: a sum of float32 in float64 does not overflow."""
    if not math.isfinite(np.frombuffer(data, np.float32).sum(dtype=np.float64)):
        raise DivergedError(
            f"The weights or the optimizer state of step {step} are NaN or infinite.",
            got="this checkpoint is not saved; the previous one stays the newest",
            fix="resume with a lower train.learning_rate and --resume auto",
        )


def _wait_for(files: Iterable[Path]) -> None:
    """Wait until a network folder shows rank 0's files. Raises FileNotFoundError after 60 s."""
    deadline = time.monotonic() + 60
    for file in files:
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        file.stat()
