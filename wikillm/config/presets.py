"""Named settings that ship with the package, on three axes: models, data, runs.

A preset is a small YAML file, `wikillm/presets/AXIS/NAME.yaml`. It has `about` (one sentence), for
models also `parameters` (the exact count at the preset's vocabulary), and those keys of the schema
that differ from the defaults (a model preset sets its whole shape). A run preset sets its model and
data preset like any other key.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from wikillm.config.yaml_file import Entry, parse_yaml
from wikillm.core.errors import ConfigError, did_you_mean

Axis = Literal["models", "data", "runs"]
AXES: tuple[Axis, ...] = ("models", "data", "runs")


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset. `source` is its name in messages and origins; `entries` are its keys."""

    source: str
    about: str
    parameters: int | None
    entries: Mapping[str, Entry]


@functools.cache
def preset_names(axis: Axis) -> tuple[str, ...]:
    """All presets of an axis, sorted by name."""
    folder = resources.files("wikillm") / "presets" / axis
    names = (file.name for file in folder.iterdir())
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


@functools.cache
def load_preset(axis: Axis, name: str) -> Preset:
    """Read a preset. Raises ConfigError with the nearest name if `name` is unknown."""
    if name not in preset_names(axis):
        near = did_you_mean(name, preset_names(axis))
        fix = f"did you mean {near}?" if near else "one of: " + ", ".join(preset_names(axis))
        kind = axis.removesuffix("s")
        raise ConfigError(f"There is no {kind} preset {name!r}.", fix=fix)
    source = f"presets/{axis}/{name}.yaml"
    file = resources.files("wikillm") / "presets" / axis / f"{name}.yaml"
    entries = parse_yaml(file.read_text(encoding="utf-8"), source)
    about = entries.pop("about", None)
    parameters = entries.pop("parameters", None)
    return Preset(
        source=source,
        about=about.value if about else "",
        parameters=parameters.value if parameters else None,
        entries=entries,
    )
