"""Writes the manifest of a checkpoint's files, and verifies the files against it.

The manifest is written last. A folder without a manifest, with a missing or short file, or with one
changed bit is refused. The manifest has the size and the sha256 of every file. Only tensor files
have their digests in `ranks/` instead (see tensor_digests). Checkpoints of format 1 have a sha256
for every file; their pickles are loaded only after `verify`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import MANIFEST, STATE, TRAINER_STATE, checkpoint_name, step_of
from wikillm.checkpoints.tensor_digests import RANKS, verify_tensors
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.errors import CheckpointError
from wikillm.core.faults import is_of_the_file
from wikillm.core.files import files_below, fsync_path, read_regular, sha256_file, write_json

FORMAT_VERSION = 2
_KNOWN_VERSIONS = (1, 2)

FileEntry = dict[str, Any]
"""{"size": bytes, "sha256": hex}, or for a tensor file {"size": bytes, "digests": "ranks"}."""


def files_to_list(checkpoint: Path) -> list[str]:
    """Relative paths of the files that a manifest lists, in an order that all ranks share."""
    names = [path.relative_to(checkpoint).as_posix() for path in files_below(checkpoint)]
    return [name for name in names if name != MANIFEST]


def seal_files(checkpoint: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """fsync these files and return their sizes and digests. (each rank for its part)"""
    entries = {}
    for name in names:
        path = checkpoint / name
        fsync_path(path)
        entries[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return entries


def tensor_entry(size: int) -> FileEntry:
    """The entry of a tensor file, whose digests are recorded by the ranks that wrote it."""
    return {"size": size, "digests": RANKS}


def write_manifest(
    checkpoint: Path, entries: Mapping[str, FileEntry], values: Mapping[str, Any]
) -> None:
    """Write the manifest: `values` (step, ...) and all entries. (one rank, after a barrier)"""
    for folder in {(checkpoint / name).parent for name in entries}:
        fsync_path(folder)
    files = dict(sorted(entries.items()))
    write_json(checkpoint / MANIFEST, {"format_version": FORMAT_VERSION, **values, "files": files})


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest and check its structure. Raises CheckpointError if that fails."""
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(read_regular(path))
        files = manifest["files"]
        well_formed = has_counts(manifest) and all(
            isinstance(entry["size"], int) and _has_digest(entry) for entry in files.values()
        )
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint: it has no {MANIFEST}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not is_of_the_file(error):
            raise
        raise CheckpointError(
            f"The manifest of {checkpoint} cannot be read.", got=repr(error)
        ) from None
    if not well_formed or manifest.get("format_version") not in _KNOWN_VERSIONS:
        raise CheckpointError(
            f"The manifest of {checkpoint} is not of format 1 or {FORMAT_VERSION}.",
            got=f"format_version={manifest.get('format_version')!r}",
            fix="use the WikiLLM version that wrote it",
        )
    return dict(manifest)


def _has_digest(entry: Mapping[str, Any]) -> bool:
    return entry.get("digests") == RANKS or len(entry["sha256"]) == 64


def has_counts(manifest: Mapping[str, Any]) -> bool:
    """Whether the numbers of a manifest's lineage, if it has one, are valid counts."""
    if "sequence" not in manifest:
        return True
    numbers = [manifest["sequence"], manifest["step"]]
    for ancestor in manifest["ancestors"]:
        numbers += [ancestor["sequence"], ancestor["step"]]
    return all(type(number) is int and number >= 0 for number in numbers)


def verify(checkpoint: Path, *, hashes: bool = True) -> dict[str, Any]:
    """Check every listed file of a published checkpoint; returns the manifest.

    `hashes=False` compares sizes only. Raises CheckpointError, which lists the damaged files.
    """
    manifest = read_manifest(checkpoint)
    raise_if_damaged(checkpoint, damage(checkpoint, manifest, hashes=hashes))
    return manifest


def raise_if_damaged(checkpoint: Path, wrong: Sequence[str]) -> None:
    """Raise CheckpointError if there are findings; the error has the first eight."""
    if wrong:
        raise CheckpointError(f"The checkpoint {checkpoint} is damaged.", got="\n".join(wrong[:8]))


def damage(
    checkpoint: Path,
    manifest: Mapping[str, Any],
    *,
    hashes: bool = True,
    rank: int = 0,
    ranks: int = 1,
    kept: VerifiedBytes | None = None,
) -> list[str]:
    """Findings about a damaged checkpoint, one line per file; an empty list for a sound one.

    Args:
        rank, ranks: this process hashes part `rank` of the content, which is divided into `ranks`
            parts; rank 0 also checks names and sizes.
        kept: receives the bytes of tensor files that this process has verified.
    """
    # Compare content only if names and sizes are right.
    files: dict[str, FileEntry] = manifest["files"]
    wrong = _wrong_names_and_sizes(checkpoint, files) if rank == 0 else []
    if not hashes or wrong:
        return wrong or (_other_steps(checkpoint, manifest) if rank == 0 else [])
    # Hash this process's part: tensor files by range, all other files whole.
    whole = [name for name, entry in sorted(files.items()) if "sha256" in entry]
    for name in whole[rank::ranks]:
        try:
            differs = sha256_file(checkpoint / name) != files[name]["sha256"]
        except OSError as error:
            if not is_of_the_file(error):
                raise
            differs = True
        if differs:
            wrong.append(f"{name}: its content changed (sha256 differs)")
    sizes = {name: entry["size"] for name, entry in files.items() if "sha256" not in entry}
    if sizes:
        wrong += verify_tensors(checkpoint, sizes, rank=rank, ranks=ranks, kept=kept)
    if not wrong and rank == 0:
        wrong = _other_steps(checkpoint, manifest)
    return wrong


def _wrong_names_and_sizes(checkpoint: Path, files: Mapping[str, FileEntry]) -> list[str]:
    wrong = []
    for name, entry in files.items():
        path = checkpoint / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            wrong.append(f"{name}: the name leads out of the checkpoint")
        elif not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != entry["size"]:
            wrong.append(f"{name}: {path.stat().st_size} bytes instead of {entry['size']}")
    # An unlisted file may be a planted pickle.
    unlisted = sorted(set(files_to_list(checkpoint)) - set(files))
    return wrong + [f"{name}: not in the manifest" for name in unlisted]


def _other_steps(checkpoint: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files with another step than the folder: it was renamed, or has files of two checkpoints."""
    named = step_of(checkpoint)
    if named is None:
        return []
    steps = {MANIFEST: manifest.get("step", named)}
    for name, key in ((STATE, "step"), (TRAINER_STATE, "global_step")):
        if name in manifest["files"]:
            steps[name] = _read_object(checkpoint, name).get(key)
    return [
        f"{name}: step {step}, and the folder is {checkpoint.name}"
        for name, step in steps.items()
        if step != named or checkpoint.name != checkpoint_name(named)
    ]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The run state of a verified checkpoint. Raises CheckpointError if it cannot be read."""
    state = _read_object(checkpoint, STATE)
    wrong = [
        f"{key}: {state[key]!r}"
        for key in ("step", "consumed_samples", "max_steps")
        if key in state and (type(state[key]) is not int or not 0 <= state[key] < 2**63)
    ]
    if wrong:
        raise CheckpointError(f"{STATE} of {checkpoint} is damaged.", got=", ".join(wrong))
    return state


def _read_object(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(read_regular(checkpoint / name)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if not is_of_the_file(error):
            raise
        raise CheckpointError(f"{checkpoint} has no readable {name}.", got=repr(error)) from None
