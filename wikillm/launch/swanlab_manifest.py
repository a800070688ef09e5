"""swanlab.yaml, the manifest of SwanLab Launch, validated as its last client did (0.4.2).

    apiVersion: swanlab/v1
    kind: Folder
    metadata: {name, desc, combo}               name is required
    spec:     {python, entry, volumes, exclude}

`python` is a quoted version, "3.8" to "3.11". `volumes` is a list of at most one {name, id}. The
files in the manifest's folder are packed. All mistakes are reported together, with their lines.
Unlike that client, this validation refuses unknown and repeated keys everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wikillm.config.yaml_file import Entry, read_yaml
from wikillm.core.errors import ConfigError, Problems, did_you_mean

FILE_NAME = "swanlab.yaml"
PYTHONS = ("3.8", "3.9", "3.10", "3.11")
_TOP = ("apiVersion", "kind", "metadata", "spec")
_METADATA = ("metadata.name", "metadata.desc", "metadata.combo")
_SPEC = ("spec.python", "spec.entry", "spec.volumes", "spec.exclude")

TEMPLATE = """\
# SwanLab Launch. Show what would be packed: wikillm launch swanlab --print
# The job runs `python train.py` in a copy of this folder, on one GPU, for 4 hours at most.
apiVersion: swanlab/v1
kind: Folder
metadata:
  name: wikillm
  desc: Pretraining on Chinese Wikipedia
  # combo: RTX3090-1       # the machine, as SwanLab names it
spec:
  python: "3.11"           # in quotes: 3.10 without them is the number 3.1
  entry: train.py
  # volumes:               # at most one; it appears as /data/NAME/
  #   - name: wiki
  #     id: ID
  exclude:                 # in every folder: `data` would also leave out wikillm/data
    - tests
    - benchmarks
    - docs
    - runs/*/*
    - stores
    - exports
    - WIKI_CN
    - qwen2-tokenizer
    - swanlog
    - build
    - dist
    - __pycache__
    - "*.egg-info"
    - "*.jsonl"
    - "*.bz2"
    - "*.gz"
    - "*.zip"
    - "wikipedia-zh-cn-*"
"""


@dataclass(frozen=True, slots=True)
class SwanLabManifest:
    """A valid manifest. `volume`: the data volume's name, its folder under /data."""

    path: Path
    name: str
    desc: str | None
    combo: str | None
    python: str
    entry: str
    volume: str | None
    volume_id: str | None
    exclude: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder that is packed."""
        return self.path.parent


def read_manifest(path: Path) -> SwanLabManifest:
    """Read and validate a manifest. Raises ConfigError with every mistake and its line."""
    try:
        entries = read_yaml(path)
    except ConfigError as error:
        fix = error.fix or "wikillm launch swanlab --init"
        raise ConfigError(f"The SwanLab manifest: {error.what}", error.got, fix) from None
    # Collect the mistakes from here on, and report them together.
    reader = _Reader(path, entries, Problems(ConfigError))
    reader.refuse_unknown(entries, (*_TOP, *_METADATA, *_SPEC), str(path))
    for key, wanted in (("apiVersion", "swanlab/v1"), ("kind", "Folder")):
        if key not in entries or entries[key].value != wanted:
            reader.problem(f"{key} must be {wanted}.", key, f"{key}: {wanted}")
    for key in ("metadata", "spec"):
        if key not in entries or not entries[key].is_mapping:
            reader.problem(f"{key} must be a mapping.", key)
    volume = reader.volume()
    manifest = SwanLabManifest(
        path=path,
        name=reader.text("metadata.name", is_required=True) or "",
        desc=reader.text("metadata.desc"),
        combo=reader.text("metadata.combo"),
        python=reader.python(),
        entry=reader.entry(),
        volume=volume.get("name"),
        volume_id=volume.get("id"),
        exclude=reader.exclude(),
    )
    reader.problems.raise_if_any()
    return manifest


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the values of a manifest, and adds each mistake to `problems`."""

    path: Path
    entries: dict[str, Entry]
    problems: Problems

    def problem(self, what: str, key: str, fix: str | None = None) -> None:
        """Add a mistake in the value of `key`."""
        got = f"{self.path} has no {key}"
        if (entry := self.entries.get(key)) is not None:
            got = f"{self.path}:{entry.line} {key}: {entry.value!r}"
        self.problems.add(what, got=got, fix=fix)

    def refuse_unknown(self, found: Iterable[str], known: tuple[str, ...], where: str) -> None:
        """Add a mistake for each key that is not `known`."""
        for key in found:
            if key not in known:
                line = f":{self.entries[key].line}" if key in self.entries else ""
                near = did_you_mean(key, known)
                fix = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
                self.problems.add(f"A SwanLab manifest has no {key}.", got=where + line, fix=fix)

    def text(self, key: str, *, is_required: bool = False) -> str | None:
        """The text at `key`; None if it is missing."""
        entry = self.entries.get(key)
        if entry is None or (entry.value is None and not entry.is_mapping):
            if is_required:
                name = key.rpartition(".")[2]
                self.problems.add(f"{key} is missing.", got=str(self.path), fix=f"{name}: NAME")
            return None
        if not isinstance(entry.value, str) or not entry.value.strip():
            self.problem(f"{key} must be text.", key, f'{key.rpartition(".")[2]}: "..."')
            return None
        return entry.value

    def python(self) -> str:
        entry = self.entries.get("spec.python", Entry("3.10", 0))  # that client's default
        if entry.value not in PYTHONS:
            quotes = "in quotes: 3.10 without them is the number 3.1"
            fix = f'python: "3.11"   (one of {", ".join(PYTHONS)}, {quotes})'
            self.problem("spec.python must be a quoted version.", "spec.python", fix)
        return str(entry.value)

    def entry(self) -> str:
        entry = self.text("spec.entry") or "train.py"
        parts = PurePosixPath(entry)
        folder = self.path.parent
        if parts.is_absolute() or ".." in parts.parts or not (folder / entry).is_file():
            what = "spec.entry must be a file in the manifest's folder."
            got = f"{self.path}: {entry}, looked in {folder.absolute()}"
            self.problems.add(what, got=got, fix="entry: train.py")
        return entry

    def volume(self) -> dict[str, str]:
        """The `name` and `id` of the volume, as far as the manifest has them."""
        fix = "volumes: [{name: wiki, id: ID}]"
        volumes = self._list("spec.volumes", fix)
        if not volumes:
            return {}
        if len(volumes) > 1:
            what = "spec.volumes must be a list of at most one volume."
            self.problems.add(what, got=f"{self.path} lists {len(volumes)}", fix=fix)
            return {}
        volume = volumes[0]
        if not isinstance(volume, dict):
            self.problem("A volume must be a mapping of name and id.", "spec.volumes", fix)
            return {}
        names = {f"spec.volumes.{key}": value for key, value in volume.items()}
        self.refuse_unknown(names, ("spec.volumes.name", "spec.volumes.id"), str(self.path))
        if volume.get("id") is None:
            self.problem("spec.volumes.id is missing.", "spec.volumes", fix)
        for key, value in names.items():
            if value is not None and (not isinstance(value, str) or not value.strip()):
                self.problem(f"{key} must be text.", "spec.volumes", fix)
        return volume

    def exclude(self) -> tuple[str, ...]:
        patterns = self._list("spec.exclude", "exclude: [tests]")
        for pattern in patterns:
            if not isinstance(pattern, str) or not pattern.strip("/ "):
                what = f"A pattern of spec.exclude must be text, not {pattern!r}."
                self.problem(what, "spec.exclude", '- "*.jsonl"')
            elif pattern.startswith("/") or ".." in pattern.split("/"):
                what = f"A pattern of spec.exclude must stay in the folder, unlike {pattern!r}."
                self.problem(what, "spec.exclude", "- tests")
        return tuple(patterns)

    def _list(self, key: str, fix: str) -> list[Any]:
        entry = self.entries.get(key)
        if entry is None or (entry.value is None and not entry.is_mapping):
            return []
        if not isinstance(entry.value, list):
            self.problem(f"{key} must be a list.", key, fix)
            return []
        return entry.value
