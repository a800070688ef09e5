"""swanlab.yaml, the manifest of SwanLab Launch, validated as its client did (0.3.19a0 to 0.4.2; deleted in 0.4.3).

    apiVersion: swanlab/v1
    kind: Folder
    metadata: {name, desc, combo}               name is required
    spec:     {python, entry, volumes, exclude}  python quoted, "3.8" to "3.11"; at most one volume {name, id}

What stands in the folder of the manifest is packed. All mistakes are told together, with their lines. Stricter than the old
client: a key that is unknown or stands twice is an error everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
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
  exclude:                 # in every folder, not only here: `data` would also leave out wikillm/data
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
class Manifest:
    """A valid manifest. `folder` is what is packed; `volume` the name under /data of the one data volume."""

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
        return self.path.parent


@dataclass(frozen=True, slots=True)
class _Value:
    """A scalar as YAML reads it, or the node of a mapping or list; and its line."""

    value: Any
    line: int


def read_manifest(path: Path) -> Manifest:
    """Raises ConfigError with every mistake and its line."""
    problems = Problems(ConfigError)
    top = _read(path, problems)
    fixed = {"apiVersion": "swanlab/v1", "kind": "Folder"}
    for key, value in fixed.items():
        if key not in top or top[key].value != value:
            problems.add(
                f"{key} is {value}.", got=_where(path, top.get(key), key), fix=f"{key}: {value}"
            )
    metadata, spec = (_section(path, top, key, problems) for key in ("metadata", "spec"))
    name = _text(path, metadata, "metadata.name", problems, needed=True)
    desc, combo = (_text(path, metadata, f"metadata.{key}", problems) for key in ("desc", "combo"))
    python = _python(path, spec, problems)
    entry = _entry(path, spec, problems)
    volume, volume_id = _volume(path, spec, problems)
    exclude = _exclude(path, spec, problems)
    problems.raise_if_any()
    return Manifest(path, name or "", desc, combo, python, entry, volume, volume_id, exclude)


def _where(path: Path, value: _Value | None, key: str) -> str:
    return (
        f"{path} has no {key}" if value is None else f"{path}:{value.line} {key}: {value.value!r}"
    )


def _read(path: Path, problems: Problems) -> dict[str, _Value]:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(
            "There is no SwanLab manifest.",
            got=f"{path}: {error.strerror}",
            fix="wikillm launch swanlab --init",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("The SwanLab manifest is not UTF-8.", got=str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            "The SwanLab manifest is not YAML.", got=f"{path}: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            "A SwanLab manifest is a mapping of keys to values.",
            got=str(path),
            fix="wikillm launch swanlab --init",
        )
    return _mapping(path, node, "", problems)


def _mapping(
    path: Path, node: yaml.MappingNode, name: str, problems: Problems
) -> dict[str, _Value]:
    """The keys of a mapping; an unknown one or a second one is a problem."""
    found: dict[str, _Value] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        full = f"{name}.{key}" if name else key
        if key not in _KEYS[name]:
            near = did_you_mean(key, _KEYS[name])
            fix = f"did you mean {near}?" if near else f"known here: {', '.join(_KEYS[name])}"
            problems.add(f"A SwanLab manifest has no {full}.", got=f"{path}:{line}", fix=fix)
        elif key in found:
            problems.add(
                f"{full} stands twice.",
                got=f"{path}:{line} and line {found[key].line}",
                fix="keep one",
            )
        else:
            found[key] = _Value(
                value_node if isinstance(value_node, yaml.CollectionNode) else _scalar(value_node),
                line,
            )
    return found


def _scalar(node: yaml.Node) -> Any:
    """Text, number, bool or null as YAML reads it: an unquoted 3.10 is the float 3.1."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)  # type: ignore[no-untyped-call]
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _section(
    path: Path, top: Mapping[str, _Value], key: str, problems: Problems
) -> dict[str, _Value]:
    value = top.get(key)
    if value is not None and isinstance(value.value, yaml.MappingNode):
        return _mapping(path, value.value, key, problems)
    problems.add(
        f"{key} is a mapping.", got=_where(path, value, key) if value else f"{path} has no {key}"
    )
    return {}


def _text(
    path: Path,
    section: Mapping[str, _Value],
    full: str,
    problems: Problems,
    *,
    needed: bool = False,
) -> str | None:
    key = full.rsplit(".", 1)[-1]
    value = section.get(key)
    if value is None or value.value is None:
        if needed:
            problems.add(f"{full} is missing.", got=str(path), fix=f"{key}: NAME")
        return None
    if not isinstance(value.value, str) or not value.value.strip():
        problems.add(f"{full} is text.", got=_where(path, value, full), fix=f'{key}: "..."')
        return None
    return value.value


def _python(path: Path, spec: Mapping[str, _Value], problems: Problems) -> str:
    value = spec.get("python")
    if value is None:
        return "3.10"  # the old client's default
    if isinstance(value.value, str) and value.value in PYTHONS:
        return value.value
    fix = f'python: "3.11"   (one of {", ".join(PYTHONS)}, in quotes: 3.10 without them is the number 3.1)'
    problems.add(
        "spec.python is a quoted version.", got=_where(path, value, "spec.python"), fix=fix
    )
    return "3.11"


def _entry(path: Path, spec: Mapping[str, _Value], problems: Problems) -> str:
    entry = _text(path, spec, "spec.entry", problems) or "train.py"
    inside = PurePosixPath(entry)
    if inside.is_absolute() or ".." in inside.parts or not (path.parent / entry).is_file():
        problems.add(
            "spec.entry is a file in the manifest's folder.",
            got=f"{path}: {entry}, looked in {path.parent.absolute()}",
            fix="entry: train.py",
        )
    return entry


def _volume(
    path: Path, spec: Mapping[str, _Value], problems: Problems
) -> tuple[str | None, str | None]:
    value = spec.get("volumes")
    if value is None or value.value is None:
        return None, None
    node, fix = value.value, "volumes: [{name: wiki, id: ID}]"
    if not isinstance(node, yaml.SequenceNode) or len(node.value) > 1:
        got = f"{path}:{value.line}" + (
            f" lists {len(node.value)}" if isinstance(node, yaml.SequenceNode) else ""
        )
        problems.add("spec.volumes is a list of at most one volume.", got=got, fix=fix)
        return None, None
    if not node.value:
        return None, None
    if not isinstance(node.value[0], yaml.MappingNode):
        problems.add("A volume is a mapping of name and id.", got=f"{path}:{value.line}", fix=fix)
        return None, None
    volume = _mapping(path, node.value[0], "spec.volumes", problems)
    identifier = _text(path, volume, "spec.volumes.id", problems, needed=True)
    return _text(path, volume, "spec.volumes.name", problems), identifier


def _exclude(path: Path, spec: Mapping[str, _Value], problems: Problems) -> tuple[str, ...]:
    value = spec.get("exclude")
    if value is None or value.value is None:
        return ()
    node = value.value
    if not isinstance(node, yaml.SequenceNode):
        problems.add("spec.exclude is a list.", got=f"{path}:{value.line}", fix="exclude: [tests]")
        return ()
    patterns = []
    for item in node.value:
        pattern, line = (
            _scalar(item) if isinstance(item, yaml.ScalarNode) else None,
            item.start_mark.line + 1,
        )
        if not isinstance(pattern, str) or not pattern.strip("/ "):
            problems.add(
                "A pattern of spec.exclude is text.", got=f"{path}:{line}", fix='- "*.jsonl"'
            )
        elif pattern.startswith("/") or ".." in pattern.split("/"):
            problems.add(
                "A pattern of spec.exclude stays in the folder.",
                got=f"{path}:{line} {pattern!r}",
                fix="- tests",
            )
        else:
            patterns.append(pattern)
    return tuple(patterns)
