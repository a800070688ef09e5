"""Checkpoints in the format of earlier versions of WikiLLM."""

from __future__ import annotations

import json
from pathlib import Path

from wikillm.checkpoints.layout import MANIFEST, STATE
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest

NEWER = ("settings", "store_facts")


def forget(checkpoint: Path) -> None:
    """Remove from a checkpoint what earlier versions did not record: settings and lineage."""
    state = json.loads((checkpoint / STATE).read_text())
    (checkpoint / STATE).write_text(
        json.dumps({key: value for key, value in state.items() if key not in NEWER})
    )
    facts = json.loads((checkpoint / MANIFEST).read_text())
    known = {key: facts[key] for key in ("step", "world_size")}
    write_manifest(checkpoint, seal_files(checkpoint, files_to_list(checkpoint)), known)
