"""The base class of the schema's sections, and types that accept several spellings."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from wikillm.core.printable import is_utf8
from wikillm.core.units import parse_count, parse_size

MAX_INTEGER = 2**63 - 1
"""The largest whole number that numpy and torch can hold."""
YES = ("true", "1", "yes", "on")
NO = ("false", "0", "no", "off")
FILE_KEYS = frozenset(
    (
        *("dir", "path", "store", "cache", "tokenizer", "protected_terms", "decontaminate"),
        *("drop_list", "init_from", "preset", "config", "log_dir"),
    )
)
"""Keys whose values are paths of files or folders."""


class Section(BaseModel):
    """Base of all sections: frozen, refuses unknown keys, NaN and infinity. A field's docstring is
    its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_usable(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers beyond 64 bits, text that is not UTF-8, and paths that no file has."""
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError(f"is larger than {MAX_INTEGER}")
        values = value if isinstance(value, tuple) else (value,)
        texts = [text for text in values if isinstance(text, str)]
        if not all(map(is_utf8, texts)):
            raise ValueError("is not UTF-8, which the files of a run are; rename the file")
        if info.field_name in FILE_KEYS:
            if any("\0" in text for text in texts):
                raise ValueError("no file has a NUL character in its name")
            # A shell does not expand `run.dir=~/x`, but some libraries do, and would use another
            # folder than WikiLLM.
            if isinstance(value, tuple):
                return tuple(map(_expand_user, value))
            return _expand_user(value)
        return value


def _expand_user(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _full_or_none(value: Any) -> Any:
    word = str(value).lower()
    return "full" if word in YES else "none" if word in NO else value


Count = Annotated[int, Field(ge=1), BeforeValidator(parse_count, json_schema_input_type=int | str)]
"""A whole number that may be written "1_000_000", "1M" or "1e6"."""
Size = Annotated[int, Field(ge=1), BeforeValidator(parse_size, json_schema_input_type=int | str)]
"""A number of bytes that may be written "64MiB" or "6MB"."""
Paths = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str] | None)
]
"""One path or several."""
Backend = Annotated[
    Literal["auto", "hf", "fastokens"], BeforeValidator(lambda v: "auto" if v == "tiktoken" else v)
]
"""The tokenizer library. Earlier versions had tiktoken, which is read as auto."""
Packing = Literal["concat", "best_fit"]
Checkpointing = Literal["none", "selective", "full_but_attention", "full"]
"""How much of the forward pass is recomputed in the backward pass, from least to most."""
ALSO_A_SWITCH = BeforeValidator(_full_or_none, json_schema_input_type=Checkpointing | bool)
"""Annotation for a key that is a boolean in other trainers: true means full, false means none."""
