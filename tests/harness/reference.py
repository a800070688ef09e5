"""Reference runs. Each is trained once per session, by the first test process that requests it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.tiny_run import Words, run


class References:
    """`references(world, "train.x=y", ..., deepspeed=recipe)`: a tiny run's result and `folder`."""

    def __init__(self, place: Path, words: Words) -> None:
        self.place = place
        self.words = words

    def __call__(self, world: int, *more: str, **options: Any) -> dict[str, Any]:
        """Train the run or read its result. Do not change its folder. Raises unless it exits 0."""
        key = repr((world, more, sorted(options.items())))
        folder = self.place / hashlib.sha256(key.encode()).hexdigest()[:12]
        with FileLock(f"{folder}.lock"):
            kept = folder / "result.pickle"
            if not kept.exists():
                result = run(world, self.words(folder / "run", *more), **options)
                assert result["code"] == 0, result["message"]
                kept.write_bytes(pickle.dumps(result))
            return pickle.loads(kept.read_bytes()) | {"folder": folder / "run"}
