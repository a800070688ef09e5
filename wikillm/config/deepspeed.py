"""A DeepSpeed JSON: finding it, reading it strictly, and knowing the line of each key.

`read_deepspeed("zero2")` takes a file or the name of a shipped recipe (`ds_configs/` of the source
tree, `wikillm/ds_configs` of an installed wheel). DeepSpeed accepts comments and duplicate keys;
here they are refused, with line and column. `deepspeed_check` checks the keys, `deepspeed_resolve`
replaces "auto". Nothing here imports deepspeed or torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from wikillm.config.precision import Precision
from wikillm.config.schema import TrainSection
from wikillm.core.errors import ConfigError, Problems, did_you_mean

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|\n')


@dataclass(frozen=True, slots=True)
class DeepSpeedFacts:
    """What a run decides and a DeepSpeed JSON must agree with, known before a model exists.

    None is not known yet, because the machines are elsewhere: it agrees with anything.
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
    """A JSON that was read. `lines` maps dotted keys to their line numbers (from 1)."""

    path: Path
    json: Mapping[str, Any]
    lines: Mapping[str, int]
    asked_for: str  # what the user wrote: a path or a recipe's name
    is_shipped: bool

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key (`zero_optimization.stage`), or `default` if it is missing."""
        return lookup(self.json, key, default)

    def where(self, key: str) -> str:
        """`zero2.json:12 gradient_clipping`: file, line and key, for a message."""
        line = self.lines.get(key)
        return f"{self.path}:{line} {key}" if line else f"{self.path} {key}"


def lookup(block: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Follow a dotted key through nested blocks."""
    value: Any = block
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def shipped_folder() -> Path:
    """The folder of the shipped recipes: in the package of a wheel, beside it in a checkout."""
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
    """The file meant by a path or a recipe's name, and whether it is a shipped one.

    A file that exists wins. `zero2`, `zero2.json` and `ds_configs/zero2.json` then mean the
    shipped recipe, so that the documented commands work from any folder. Raises ConfigError with
    the nearest name.
    """
    path = Path(path_or_name)
    names = shipped_names()
    if path.is_file():
        return path, False
    stem = path.name.removesuffix(".json")
    if stem in names and path.parent.name in ("", "ds_configs"):
        return shipped_folder() / f"{stem}.json", True
    got = f"no file {path.absolute()}, and no shipped recipe of that name"
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
    value, lines = parse_strictly(text, path)
    return DeepSpeedFile(path, value, lines, str(path_or_name), is_shipped)


def parse_strictly(text: str, path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The object in `text`, and the line of every dotted key. Raises ConfigError if not strict."""

    def refuse(number: str) -> NoReturn:
        line = text.count("\n", 0, text.index(number)) + 1
        what = "NaN and Infinity are not JSON."
        raise ConfigError(what, got=f"{path}:{line} {number}", fix="write a finite number")

    def finite(number: str) -> float:
        return float(number) if math.isfinite(float(number)) else refuse(number)

    try:
        value = json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].strip()
        is_comment = line.startswith(("//", "#", "/*"))
        hint = "JSON has no comments; remove it" if is_comment else "correct the line"
        raise ConfigError(
            f"The DeepSpeed JSON is not valid: {error.msg}.",
            got=f"{path}:{error.lineno}:{error.colno}  {line[:100]}",
            fix=f"{hint} (`python -m json.tool {path}` checks it)",
        ) from None
    except RecursionError:
        raise ConfigError("The DeepSpeed JSON is nested too deeply.", got=str(path)) from None
    if not isinstance(value, dict):
        got = f"{path} holds a {type(value).__name__}"
        raise ConfigError("A DeepSpeed JSON must be one object { }.", got)
    lines: dict[str, int] = {}
    problems = Problems(ConfigError)
    for key, number in _keys_with_lines(text):
        if key in lines:
            problems.add(
                f'The key "{key.rsplit(".", 1)[-1]}" appears twice in one block.',
                got=f"{path}:{lines[key]} and {path}:{number}  {key}",
                fix="keep one of them: JSON readers silently keep the last",
            )
        lines.setdefault(key, number)
    problems.raise_if_any()
    return value, lines


def _keys_with_lines(text: str) -> Iterator[tuple[str, int]]:
    """Every key of a valid JSON text with its line; of list items `optimizer.groups[0].lr`."""
    line = 1
    key = ""
    before_colon = ""
    # (dotted path, index of the current item, or None in an object)
    stack: list[tuple[str, int | None]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
        elif token[0] == '"':
            before_colon = token
        elif token == ":":
            name = json.loads(before_colon)
            key = f"{stack[-1][0]}.{name}" if stack[-1][0] else name
            yield key, line
        elif token in "{[":
            path, index = stack[-1] if stack else ("", None)
            inner = key if index is None else f"{path}[{index}]"
            stack.append((inner, None if token == "{" else 0))
        elif token in "}]":
            stack.pop()
        elif stack[-1][1] is not None:  # a comma in a list
            stack[-1] = (stack[-1][0], stack[-1][1] + 1)
