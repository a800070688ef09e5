"""Computes the place of each tensor in a checkpoint: whole (global) tensors in safetensors files.

A checkpoint holds whole tensors for any number of ranks, ZeRO stage or partition of the optimizer.
The offsets follow from the list of tensors alone, so all ranks compute the same layout, and each
rank writes its own byte ranges into the shared files:

    model.safetensors                 fp32 weights; transformers opens them in place
    optimizer/exp_avg.safetensors     AdamW's first moment, under the parameter's name
    optimizer/exp_avg_sq.safetensors  AdamW's second moment
    optimizer/momentum.safetensors    Muon's momentum
    ema/model.safetensors             the moving average of the weights

A file above `SHARD_BYTES` is cut between tensors: NAME-00001-of-00002.safetensors.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from wikillm.core.errors import CheckpointError

FILES: Mapping[str, str] = {
    "weight": "model",
    "exp_avg": "optimizer/exp_avg",
    "exp_avg_sq": "optimizer/exp_avg_sq",
    "momentum": "optimizer/momentum",
    "average": "ema/model",
}
"""Each kind of tensor and the file that holds it, without its suffix."""
SHARD_BYTES = 5_000_000_000
ITEM = 4
"""Bytes per element: every tensor is float32."""

_SHARD = re.compile(r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.safetensors")
_MAX_HEADER = 100 << 20  # safetensors refuses a longer header


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """A whole tensor of the training state.

    Attributes:
        kind: a key of FILES.
        name: the parameter's name in `model.named_parameters()`.
        shape: shape of the whole tensor.
    """

    kind: str
    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file. `name` is relative to the checkpoint; `size` includes the header."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The files of a checkpoint's tensors.

    `offsets`: (number of the file, first byte of the tensor in it), by tensor.
    """

    files: tuple[TensorFile, ...]
    offsets: Mapping[TensorSpec, tuple[int, int]]

    def extent(self, spec: TensorSpec, start: int, stop: int) -> tuple[int, int, int]:
        """(file, first byte, byte after the last) of the elements [start, stop) of a tensor."""
        file, offset = self.offsets[spec]
        return file, offset + start * ITEM, offset + stop * ITEM


def lay_out(specs: Iterable[TensorSpec], shard_bytes: int = SHARD_BYTES) -> TensorLayout:
    """The layout of these tensors. It does not depend on their order, nor on the rank."""
    files: list[TensorFile] = []
    offsets: dict[TensorSpec, tuple[int, int]] = {}
    ordered = sorted(specs)
    for kind, stem in FILES.items():
        shards = _shards([spec for spec in ordered if spec.kind == kind], shard_bytes)
        for number, members in enumerate(shards, start=1):
            suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            header = _header(members)
            offset = len(header)
            for spec in members:
                offsets[spec] = (len(files), offset)
                offset += spec.numel * ITEM
            files.append(TensorFile(f"{stem}{suffix}.safetensors", header, offset))
    return TensorLayout(tuple(files), offsets)


def weight_index(layout: TensorLayout, kind: str) -> dict[str, Any] | None:
    """Hugging Face's weight index for a kind with several shards; None for a single file."""
    names = {
        spec.name: Path(layout.files[file].name).name
        for spec, (file, _) in layout.offsets.items()
        if spec.kind == kind
    }
    if len(set(names.values())) < 2:
        return None
    total = sum(spec.numel * ITEM for spec in layout.offsets if spec.kind == kind)
    return {"metadata": {"total_size": total}, "weight_map": names}


def read_layout(checkpoint: Path) -> TensorLayout:
    """The layout of a checkpoint's tensors, from the headers of its files.

    Raises CheckpointError for a header that cannot be read or does not describe its file.
    """
    kinds = {stem: kind for kind, stem in FILES.items()}
    files: list[TensorFile] = []
    offsets: dict[TensorSpec, tuple[int, int]] = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        name = path.relative_to(checkpoint).as_posix()
        match = _SHARD.fullmatch(name)
        kind = kinds.get(match["stem"]) if match else None
        if kind is None:
            continue
        header = _read_header(path)
        for tensor, shape, offset in _tensors(path, header):
            offsets[TensorSpec(kind, tensor, shape)] = (len(files), offset)
        files.append(TensorFile(name, header, path.stat().st_size))
    return TensorLayout(tuple(files), offsets)


def _shards(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Divide the tensors, in order, into files; only a single tensor may exceed `shard_bytes`."""
    shards: list[list[TensorSpec]] = []
    held = 0
    for spec in specs:
        size = spec.numel * ITEM
        if not shards or held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(spec)
        held += size
    return shards


def _header(specs: Sequence[TensorSpec]) -> bytes:
    """The header of a safetensors file, https://github.com/huggingface/safetensors#format.

    Padded so that the tensors begin at a multiple of 64 bytes.
    """
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        stop = offset + spec.numel * ITEM
        described[spec.name] = {
            "dtype": "F32",
            "shape": list(spec.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path) -> bytes:
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise CheckpointError(f"{path} is not a safetensors file.", got="its header is cut off")
        return prefix + file.read(length)


def _tensors(path: Path, header: bytes) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, first byte in the file) of each tensor. Raises unless they fill the file."""
    try:
        described = json.loads(header[8:])
        described.pop("__metadata__", None)
        entries = sorted(
            (*entry["data_offsets"], name, tuple(entry["shape"]), entry["dtype"])
            for name, entry in described.items()
        )
        expected = 0
        for start, stop, name, shape, dtype in entries:
            if dtype != "F32" or start != expected or stop - start != prod(shape) * ITEM:
                raise ValueError(f"{name}: {dtype} {list(shape)} at [{start}, {stop})")
            expected = stop
        if len(header) + expected != path.stat().st_size:
            raise ValueError(f"{path.stat().st_size} bytes instead of {len(header) + expected}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"The header of {path} is damaged.", got=str(error)) from None
    return [(name, shape, len(header) + start) for start, _, name, shape, _ in entries]
