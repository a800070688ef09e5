"""The origin of each value. The layers, lowest first, are default, preset, file, command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wikillm.core.errors import Problems

Layer = Literal["default", "preset", "file", "command line"]
LAYERS: tuple[Layer, ...] = ("default", "preset", "file", "command line")


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer that set a value. `where` is `FILE:LINE`, or the argument as typed; empty for a
    default."""

    layer: Layer
    where: str = ""

    @property
    def rank(self) -> int:
        """Position of the layer; the layer with the highest rank wins."""
        return LAYERS.index(self.layer)

    @property
    def is_user(self) -> bool:
        """Whether the user set the value for this run, in a file or on the command line."""
        return self.layer in ("file", "command line")

    def __str__(self) -> str:
        return f"{self.layer}: {self.where}" if self.where else self.layer


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Setting:
    """The value that one source gives to a key, before validation."""

    key: str
    value: Any
    origin: Origin


def merge(
    sources: Iterable[Iterable[Setting]], groups: Iterable[tuple[str, ...]], problems: Problems
) -> dict[str, Setting]:
    """Merge `sources`, lowest first; within a source the last setting of a key wins.

    A group holds keys that exclude each other. A key set in a higher source sets the other keys of
    its group to None and becomes their origin. Two keys of a group set in one source are a problem.
    """
    merged: dict[str, Setting] = {}
    groups = tuple(groups)
    for source in sources:
        own = {setting.key: setting for setting in source}
        merged.update(own)
        for group in groups:
            named = [own[key] for key in group if key in own and _is_set(own[key])]
            if len(named) > 1:
                places = [f"{s.key}={s.value}   ({s.origin.where})" for s in named]
                what = " and ".join(setting.key for setting in named) + " exclude each other."
                problems.add(what, "\n".join(places), f"keep one of {', '.join(group)}")
            elif named:
                _unset_others(merged, group, named[0])
    return merged


def _is_set(setting: Setting) -> bool:
    return setting.value is not None and setting.value != []


def _unset_others(merged: dict[str, Setting], group: tuple[str, ...], winner: Setting) -> None:
    for key in group:
        if key != winner.key and key in merged and _is_set(merged[key]):
            where = f"{winner.origin.where}, which replaces {key}={merged[key].value}"
            merged[key] = Setting(key, None, Origin(winner.origin.layer, where))


def where_of(origins: Mapping[str, Origin], *keys: str) -> str:
    """Where `keys` are set, for a message, without defaults: `a.yaml:3, --max_steps 5`."""
    places = dict.fromkeys(origins[key].where for key in keys if origins[key].where)
    return ", ".join(places) or "defaults"
