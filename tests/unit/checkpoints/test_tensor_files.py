"""Global tensors in safetensors: written by several ranks, read in slices, verified in shares."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wikillm.checkpoints.tensor_digests import (
    RANKS,
    Extent,
    digests_to_json,
    rank_file,
    verify_tensors,
)
from wikillm.checkpoints.tensor_files import create_files, open_tensors, write_part
from wikillm.checkpoints.tensor_layout import TensorSpec, lay_out, read_layout, weight_index
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.errors import CheckpointError

SPECS = [
    TensorSpec("weight", "embed", (37, 8)),
    TensorSpec("weight", "norm", (8,)),
    TensorSpec("weight", "scalar", ()),
    TensorSpec("exp_avg", "embed", (37, 8)),
    TensorSpec("momentum", "matrix", (16, 16)),
]


def values(spec: TensorSpec) -> np.ndarray:
    seed = sum(map(ord, spec.kind + spec.name))
    return np.random.default_rng(seed).standard_normal(spec.numel).astype(np.float32)


def write(folder: Path, ranks: int, seed: int, shard_bytes: int = 5_000_000_000) -> dict[str, int]:
    """A checkpoint's tensors by `ranks` writers, each with random ranges; its files' sizes."""
    layout = lay_out(SPECS, shard_bytes)
    draw = random.Random(seed)
    shares: list[list[tuple[Extent, bytes]]] = [[] for _ in range(ranks)]
    for spec in SPECS:
        cuts = sorted({0, spec.numel, *(draw.randint(0, spec.numel) for _ in range(5))})
        for start, stop in zip(cuts, cuts[1:], strict=False):
            part = (layout.extent(spec, start, stop), values(spec)[start:stop].tobytes())
            shares[draw.randrange(ranks)].append(part)
    headers = create_files(folder, layout)
    (folder / RANKS).mkdir()
    for rank, share in enumerate(shares):
        share.sort()
        data = memoryview(b"".join(part for _, part in share))
        digests = write_part(folder, layout, [extent for extent, _ in share], data)
        digests |= headers if rank == 0 else {}
        record = {"digests": digests_to_json([file.name for file in layout.files], digests)}
        (folder / rank_file(rank)).write_text(json.dumps(record))
    return {file.name: file.size for file in layout.files}


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_slice_is_read_back_and_safetensors_opens_the_files(
    tmp_path: Path, ranks: int
) -> None:
    sizes = write(tmp_path, ranks, seed=ranks)
    assert set(sizes) == {
        "model.safetensors",
        "optimizer/exp_avg.safetensors",
        "optimizer/momentum.safetensors",
    }
    assert {path: (tmp_path / path).stat().st_size for path in sizes} == sizes
    plain = load_file(tmp_path / "model.safetensors")
    assert plain["embed"].shape == (37, 8) and plain["scalar"].shape == ()
    with open_tensors(tmp_path) as reader:
        assert set(reader.specs) == set(SPECS)
        for spec in SPECS:
            for start, stop in ((0, spec.numel), (spec.numel // 3, spec.numel // 2), (1, 1)):
                assert np.array_equal(reader.read(spec, start, stop), values(spec)[start:stop])
    for shares in (1, 2, ranks, 7):
        found = [verify_tensors(tmp_path, sizes, rank=r, ranks=shares) for r in range(shares)]
        assert sum(found, []) == []


@pytest.mark.parametrize("ranks", [1, 3])
def test_verified_bytes_are_not_read_again(tmp_path: Path, ranks: int) -> None:
    """The files are zeroed after the check: what is right afterwards was kept from it."""
    sizes = write(tmp_path, 3, seed=4)
    kept = [VerifiedBytes(1 << 20) for _ in range(ranks)]
    for rank, of_rank in enumerate(kept):
        assert verify_tensors(tmp_path, sizes, rank=rank, ranks=ranks, kept=of_rank) == []
    headers = {file.name: file.header for file in read_layout(tmp_path).files}
    for name, size in sizes.items():
        zeros = bytes(size - len(headers[name]))
        (tmp_path / name).write_bytes(headers[name] + zeros)
    found = np.zeros(len(SPECS))
    for of_rank in kept:
        with open_tensors(tmp_path, of_rank) as reader:
            for number, spec in enumerate(SPECS):
                read = reader.read(spec, 0, spec.numel)
                assert np.isin(read, (0, *values(spec))).all()
                found[number] += np.count_nonzero(read)
        of_rank.clear()
        with open_tensors(tmp_path, of_rank) as reader:
            assert not reader.read(SPECS[0], 0, SPECS[0].numel).any()
    assert found.tolist() == [np.count_nonzero(values(spec)) for spec in SPECS]


def test_verified_bytes_stay_below_their_limit(tmp_path: Path) -> None:
    sizes = write(tmp_path, 1, seed=4)
    kept = VerifiedBytes(200)
    assert verify_tensors(tmp_path, sizes, kept=kept) == []
    with open_tensors(tmp_path, kept) as reader:
        for spec in SPECS:
            assert np.array_equal(reader.read(spec, 0, spec.numel), values(spec))
    held = sum(len(data) for pieces in kept._pieces.values() for _, data in pieces)
    assert 0 <= held <= 200


def test_a_large_file_is_cut_between_tensors_with_an_index(tmp_path: Path) -> None:
    sizes = write(tmp_path, 2, seed=3, shard_bytes=1000)
    layout = lay_out(SPECS, 1000)
    index = weight_index(layout, "weight")
    assert index is not None and weight_index(layout, "exp_avg") is None
    assert set(index["weight_map"].values()) == {n for n in sizes if n.startswith("model-")}
    assert read_layout(tmp_path).offsets == layout.offsets
    assert verify_tensors(tmp_path, sizes) == []


def test_any_changed_byte_is_found_by_the_share_that_holds_it(tmp_path: Path) -> None:
    sizes = write(tmp_path, 3, seed=8)
    draw = random.Random(8)
    for name, size in sizes.items():
        whole = (tmp_path / name).read_bytes()
        for at in (0, size - 1, *(draw.randrange(size) for _ in range(10))):
            content = bytearray(whole)
            content[at] ^= 1 << draw.randrange(8)
            (tmp_path / name).write_bytes(content)
            found = [verify_tensors(tmp_path, sizes, rank=rank, ranks=2) for rank in range(2)]
            assert len(sum(found, [])) == 1 and sum(found, [])[0].startswith(name), (name, at)
        (tmp_path / name).write_bytes(whole)
    assert verify_tensors(tmp_path, sizes) == []


def test_ranges_that_no_rank_recorded_are_found(tmp_path: Path) -> None:
    sizes = write(tmp_path, 3, seed=5)
    record = json.loads((tmp_path / rank_file(1)).read_text())
    record["digests"]["groups"].pop()
    (tmp_path / rank_file(1)).write_text(json.dumps(record))
    assert "do not cover" in verify_tensors(tmp_path, sizes)[0]


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 16, b"\x08\0\0\0\0\0\0\0{}      xx"])
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_layout(tmp_path)
