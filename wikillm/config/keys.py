"""The schema as a flat list of dotted keys, for layers, flags, `--help` and `config show`.

The list is derived from `schema.RunConfig` alone, so a new field appears everywhere.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from wikillm.config.schema import RunConfig
from wikillm.config.schema_alerts import HOOKS, SECRETS
from wikillm.config.schema_types import ALSO_A_SWITCH

REMOVED = {
    "train.cuda_graphs": "off",
    "train.merged_projections": "off",
    "train.z_loss": 0.0,
    "train.batch_ramp_from": None,
    "train.batch_ramp_tokens": None,
    "model.zero_init_outputs": False,
}
"""Removed keys -> the only value that is still accepted, because old run directories contain it."""
RENAMED = {"train.meet_seconds": "train.rendezvous_seconds"}
"""Former names of keys, still accepted -> present names."""
WAS_REMOVED = "leave it out: it was removed because no measurement showed a gain"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the schema that has a value, e.g. `train.max_steps`.

    `kinds` are the types of its annotation, `choices` the strings that it allows.
    """

    name: str
    default: Any
    doc: str
    kinds: tuple[type, ...]
    choices: tuple[str, ...]

    @property
    def leaf(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def is_optional(self) -> bool:
        """Whether `null` is a legal value, which unsets the key."""
        return type(None) in self.kinds or tuple in self.kinds

    @property
    def is_text(self) -> bool:
        return str in self.kinds

    @property
    def is_list(self) -> bool:
        return tuple in self.kinds

    @property
    def is_switch(self) -> bool:
        return bool in self.kinds

    @property
    def names_a_variable(self) -> bool:
        """Whether the value names an environment variable that holds a secret."""
        return self.name.startswith("alerts.") and self.leaf in (*HOOKS, *SECRETS)


def _kinds(annotation: Any) -> Iterator[type]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is tuple:
        yield tuple
    elif origin is not None and origin is not typing.Literal:  # a union
        for part in typing.get_args(annotation):
            yield from _kinds(part)
    elif isinstance(annotation, type):
        yield annotation


def _choices(annotation: Any) -> Iterator[str]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from (str(choice) for choice in typing.get_args(annotation))
    else:
        for part in typing.get_args(annotation):
            yield from _choices(part)


def _walk(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
            continue
        doc = " ".join((field.description or "").split())
        kinds = tuple(_kinds(annotation))
        choices = tuple(_choices(annotation))
        kinds += (bool,) if ALSO_A_SWITCH in field.metadata else ()
        yield Key(prefix + name, field.get_default(), doc, kinds, choices)


@functools.cache
def all_keys() -> Mapping[str, Key]:
    """Every key of a run, in the schema's order."""
    return {key.name: key for key in _walk(RunConfig, "")}


@functools.cache
def section_names() -> frozenset[str]:
    """Every section of the schema, by dotted name: `train`, `observe.swanlab`."""
    names: set[str] = set()
    for name in all_keys():
        parts = name.split(".")
        names.update(".".join(parts[:depth]) for depth in range(1, len(parts)))
    return frozenset(names)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to the nested mapping that pydantic reads."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def flat(config: RunConfig) -> dict[str, Any]:
    """Convert a configuration to dotted keys, in the schema's order."""
    values = {}
    for name in all_keys():
        node: Any = config
        for part in name.split("."):
            node = getattr(node, part)
        values[name] = node
    return values
