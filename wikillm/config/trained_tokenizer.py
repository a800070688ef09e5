"""`data.tokenizer=train:N`: the vocabulary size of a tokenizer that is trained on the corpus."""

from __future__ import annotations

from wikillm.core.errors import ConfigError

PREFIX = "train:"
MIN_VOCABULARY = 259
"""256 bytes plus the special tokens. A test compares this number with the trainer's."""
MAX_VOCABULARY = 1_000_000


def parse_train(setting: str) -> int:
    """`train:8000` -> 8000. Raises ConfigError if N is not a valid vocabulary size."""
    text = setting.removeprefix(PREFIX).replace("_", "")
    is_number = text.isascii() and text.isdecimal()
    if not is_number or not MIN_VOCABULARY <= int(text) <= MAX_VOCABULARY:
        raise ConfigError(
            "data.tokenizer=train:N needs the size of the vocabulary.",
            got=repr(setting),
            fix=f"data.tokenizer=train:8000 (from {MIN_VOCABULARY} to {MAX_VOCABULARY:,})",
        )
    return int(text)
