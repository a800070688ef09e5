"""swanlab.yaml, the manifest of SwanLab Launch, validated as its last client did (0.4.2).

    apiVersion: swanlab/v1
    kind: Folder
    metadata: {name, desc, combo}               name is required
    spec:     {python, entry, volumes, exclude}

`python` is a quoted version, "3.8" to "3.11"; `volumes` has one entry {name, id} at most.

The files in the manifest's folder are packed. All mistakes are reported together, with their lines.
Stricter than that client: an unknown key, or one that occurs twice, is an error everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from wikillm.core.errors import ConfigError, Problems, did_you_mean

FILE_NAME = "swanlab.yaml"
PYTHONS = ("3.8", "3.9", "3.10", "3.11")
_KEYS = {
    "": ("apiVersion", "kind", "metadata", "spec"),
    "metadata": ("name", "desc", "combo"),
    "spec": ("python", "entry", "volumes", "exclude"),
    "spec.volumes": ("name", "id"),
}

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
    """A valid manifest; `volume` is the name under /data of the one data volume."""

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
        """What is packed."""
        return self.path.parent


@dataclass(frozen=True, slots=True)
class _Value:
    """A scalar as YAML reads it, or the node of a mapping or list; and its line."""

    value: Any
    line: int


_Section = dict[str, _Value]


def read_manifest(path: Path) -> SwanLabManifest:
    """Raises ConfigError with every mistake and its line."""
    reader = _Reader(path, Problems(ConfigError))
    top = reader.mapping(_compose(path), "")
    for key, wanted in (("apiVersion", "swanlab/v1"), ("kind", "Folder")):
        if key not in top or top[key].value != wanted:
            reader.problem(f"{key} is {wanted}.", key, top.get(key), fix=f"{key}: {wanted}")
    metadata = reader.section(top, "metadata")
    spec = reader.section(top, "spec")
    volume = reader.volume(spec)
    manifest = SwanLabManifest(
        path=path,
        name=reader.text(metadata, "metadata.name", is_required=True) or "",
        desc=reader.text(metadata, "metadata.desc"),
        combo=reader.text(metadata, "metadata.combo"),
        python=reader.python(spec),
        entry=reader.entry(spec),
        volume=reader.text(volume, "spec.volumes.name"),
        volume_id=reader.text(volume, "spec.volumes.id", is_required=bool(volume)),
        exclude=reader.exclude(spec),
    )
    reader.problems.raise_if_any()
    return manifest


def _compose(path: Path) -> yaml.MappingNode:
    init = "wikillm launch swanlab --init"
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        got = f"{path}: {error.strerror}"
        raise ConfigError("There is no SwanLab manifest.", got=got, fix=init) from None
    except UnicodeDecodeError:
        raise ConfigError("The SwanLab manifest is not UTF-8.", got=str(path)) from None
    except yaml.YAMLError as error:
        got = f"{path}: {' '.join(str(error).split())}"
        raise ConfigError("The SwanLab manifest is not YAML.", got=got) from None
    if not isinstance(node, yaml.MappingNode):
        what = "A SwanLab manifest is a mapping of keys to values."
        raise ConfigError(what, got=str(path), fix=init)
    return node


def _scalar(node: yaml.Node) -> Any:
    """Text, number, bool or null as YAML reads it: an unquoted 3.10 is the float 3.1."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)  # type: ignore[no-untyped-call]
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of a manifest and collects the mistakes in `problems`."""

    path: Path
    problems: Problems

    def problem(self, what: str, key: str, value: _Value | None, fix: str | None = None) -> None:
        got = f"{self.path} has no {key}"
        if value is not None:
            got = f"{self.path}:{value.line} {key}: {value.value!r}"
        self.problems.add(what, got=got, fix=fix)

    def mapping(self, node: yaml.MappingNode, name: str) -> _Section:
        """The keys of a mapping; an unknown or repeated one is a mistake."""
        found: _Section = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            full = f"{name}.{key}" if name else key
            if key not in _KEYS[name]:
                near = did_you_mean(key, _KEYS[name])
                fix = f"did you mean {near}?" if near else f"known here: {', '.join(_KEYS[name])}"
                what = f"A SwanLab manifest has no {full}."
                self.problems.add(what, got=f"{self.path}:{line}", fix=fix)
            elif key in found:
                got = f"{self.path}:{line} and line {found[key].line}"
                self.problems.add(f"{full} occurs twice.", got=got, fix="keep one")
            else:
                is_plain = not isinstance(value, yaml.CollectionNode)
                found[key] = _Value(_scalar(value) if is_plain else value, line)
        return found

    def section(self, top: _Section, key: str) -> _Section:
        value = top.get(key)
        if value is not None and isinstance(value.value, yaml.MappingNode):
            return self.mapping(value.value, key)
        self.problem(f"{key} is a mapping.", key, value)
        return {}

    def text(self, section: _Section, full: str, *, is_required: bool = False) -> str | None:
        key = full.rpartition(".")[2]
        value = section.get(key)
        if value is None or value.value is None:
            if is_required:
                self.problems.add(f"{full} is missing.", got=str(self.path), fix=f"{key}: NAME")
            return None
        if not isinstance(value.value, str) or not value.value.strip():
            self.problem(f"{full} is text.", full, value, fix=f'{key}: "..."')
            return None
        return value.value

    def python(self, spec: _Section) -> str:
        value = spec.get("python")
        if value is None:
            return "3.10"  # that client's default
        if isinstance(value.value, str) and value.value in PYTHONS:
            return value.value
        quotes = "in quotes: 3.10 without them is the number 3.1"
        fix = f'python: "3.11"   (one of {", ".join(PYTHONS)}, {quotes})'
        self.problem("spec.python is a quoted version.", "spec.python", value, fix=fix)
        return "3.11"

    def entry(self, spec: _Section) -> str:
        entry = self.text(spec, "spec.entry") or "train.py"
        parts = PurePosixPath(entry)
        folder = self.path.parent
        if parts.is_absolute() or ".." in parts.parts or not (folder / entry).is_file():
            what = "spec.entry is a file in the manifest's folder."
            got = f"{self.path}: {entry}, looked in {folder.absolute()}"
            self.problems.add(what, got=got, fix="entry: train.py")
        return entry

    def volume(self, spec: _Section) -> _Section:
        value = spec.get("volumes")
        if value is None or value.value is None:
            return {}
        node = value.value
        fix = "volumes: [{name: wiki, id: ID}]"
        got = f"{self.path}:{value.line}"
        if not isinstance(node, yaml.SequenceNode) or len(node.value) > 1:
            got += f" lists {len(node.value)}" if isinstance(node, yaml.SequenceNode) else ""
            what = "spec.volumes is a list of at most one volume."
            self.problems.add(what, got=got, fix=fix)
            return {}
        if not node.value:
            return {}
        if not isinstance(node.value[0], yaml.MappingNode):
            self.problems.add("A volume is a mapping of name and id.", got=got, fix=fix)
            return {}
        return self.mapping(node.value[0], "spec.volumes")

    def exclude(self, spec: _Section) -> tuple[str, ...]:
        value = spec.get("exclude")
        if value is None or value.value is None:
            return ()
        if not isinstance(value.value, yaml.SequenceNode):
            got = f"{self.path}:{value.line}"
            self.problems.add("spec.exclude is a list.", got=got, fix="exclude: [tests]")
            return ()
        patterns = []
        for item in value.value.value:
            pattern = _scalar(item) if isinstance(item, yaml.ScalarNode) else None
            got = f"{self.path}:{item.start_mark.line + 1}"
            if not isinstance(pattern, str) or not pattern.strip("/ "):
                self.problems.add("A pattern of spec.exclude is text.", got=got, fix='- "*.jsonl"')
            elif pattern.startswith("/") or ".." in pattern.split("/"):
                what = "A pattern of spec.exclude stays in the folder."
                self.problems.add(what, got=f"{got} {pattern!r}", fix="- tests")
            else:
                patterns.append(pattern)
        return tuple(patterns)
