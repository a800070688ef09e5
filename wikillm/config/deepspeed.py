"""Find a DeepSpeed JSON, parse it strictly, and report the line of a key.

`read_deepspeed("zero2")` takes a file or the name of a shipped recipe (`ds_configs/` of the source
tree, `wikillm/ds_configs` of an installed wheel). DeepSpeed accepts comments and duplicate keys;
this parser refuses them. `deepspeed_check` has the checks of the keys, `deepspeed_resolve` the
replacement of "auto". Nothing here imports deepspeed or torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.config.precision import Precision
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class DeepSpeedRun:
    """Values of the run that a DeepSpeed JSON must agree with. All are known before a model exists.

    A field is None while it is unknown, as when planning for another machine; unknown fields are
    not checked.
    """

    train: TrainSection
    hidden_size: int
    micro_batch: int | None  # sequences per rank and micro-step
    accumulation: int | None  # micro-steps per optimizer step
    world_size: int | None
    local_world_size: int | None
    precision: Precision | None
    has_gpu: bool | None


@dataclass(frozen=True, slots=True)
class DeepSpeedFile:
    """A parsed DeepSpeed JSON, and the text of its file."""

    path: Path
    json: Mapping[str, Any]
    text: str
    asked_for: str  # the path or recipe name that the user gave
    is_shipped: bool

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key (`zero_optimization.stage`), or `default` if it is missing."""
        return lookup(self.json, key, default)

    def where(self, key: str) -> str:
        """`zero2.json:12 gradient_clipping`: file, line and key, for a message."""
        if self.get(key) is None:
            return f"{self.path} {key}"
        at = 0
        for name in key.split("."):
            at = max(at, self.text.find(f'"{name}"', at))
        line = self.text.count("\n", 0, at) + 1
        return f"{self.path}:{line} {key}"


def lookup(block: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Follow a dotted key through nested blocks."""
    value: Any = block
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def shipped_folder() -> Path:
    """The folder of the shipped recipes: inside the package of a wheel, next to the package in a
    checkout."""
    package = Path(__file__).resolve().parent.parent
    folders = [package / "ds_configs", package.parent / "ds_configs"]
    for folder in folders:
        if (folder / "zero2.json").is_file():
            return folder
    raise ConfigError(
        "The shipped DeepSpeed recipes are missing.",
        got=f"looked in {folders[0]} and {folders[1]}",
        fix="reinstall wikillm, or give the path of a DeepSpeed JSON",
    )


def shipped_names() -> tuple[str, ...]:
    """zero0, zero1, ...: the recipes that can be given by name."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.json")))


def find_deepspeed(path_or_name: str | Path) -> tuple[Path, bool]:
    """(path of the JSON, whether it is a shipped recipe) for a path or a recipe's name.

    An existing file takes precedence. Otherwise `zero2`, `zero2.json` and `ds_configs/zero2.json`
    mean the shipped recipe, so that documented commands work from any folder. Raises ConfigError
    with the nearest name.
    """
    path = Path(path_or_name)
    names = shipped_names()
    if path.is_file():
        return path, False
    stem = path.name.removesuffix(".json")
    if stem in names and path.parent.name in ("", "ds_configs"):
        return shipped_folder() / f"{stem}.json", True
    got = f"{path.absolute()} does not exist, and {path_or_name} is no name of a shipped recipe"
    if path.is_dir():
        got = f"{path} is a folder"
    near = stem if stem in names else did_you_mean(stem, names)
    raise ConfigError(
        f"No DeepSpeed JSON at {path_or_name}.",
        got=f"{got}; shipped: {', '.join(names)}",
        fix=f"--deepspeed {near or 'zero2'}, or the path of your own JSON",
    )


def read_deepspeed(path_or_name: str | Path) -> DeepSpeedFile:
    """Find and parse a DeepSpeed JSON; `check_deepspeed` checks the keys. Raises ConfigError."""
    path, is_shipped = find_deepspeed(path_or_name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("The DeepSpeed JSON cannot be read.", got=f"{path}: {error}") from error
    value = parse_strictly(text, path)
    return DeepSpeedFile(path, value, text, str(path_or_name), is_shipped)


def parse_strictly(text: str, path: Path) -> dict[str, Any]:
    """Parse the JSON object in `text`. Raises ConfigError for invalid JSON and duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(
                    f'The key "{key}" appears twice in one block.',
                    got=f"{path}: {found[key]!r} and {value!r}",
                    fix="keep one of them: JSON readers silently keep the last",
                )
            found[key] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
        json.dumps(value, allow_nan=False)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].strip()
        raise ConfigError(
            f"The DeepSpeed JSON is not valid: {error.msg}.",
            got=f"{path}:{error.lineno}:{error.colno}  {line[:100]}",
            fix=f"correct the line; JSON has no comments (`python -m json.tool {path}` checks it)",
        ) from None
    except (ValueError, RecursionError) as error:  # NaN, or beyond Python's limits
        fix = "write finite numbers, and nest fewer blocks"
        raise ConfigError("The DeepSpeed JSON cannot be used.", f"{path}: {error}", fix) from None
    if not isinstance(value, dict):
        got = f"{path} holds a {type(value).__name__}"
        raise ConfigError("A DeepSpeed JSON must be one object { }.", got)
    return value
