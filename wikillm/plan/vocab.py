"""Chooses the number of rows of the embedding for a tokenizer.

Rows beyond the tokenizer's ids are never a target. They round the output projection up to whole GPU
tiles, which is faster than the exact number (nanoGPT reported 25 % for GPT-2's 50,257 -> 50,304).
"""

from __future__ import annotations

from wikillm.config.origin import Origin
from wikillm.config.schema import ModelSection
from wikillm.core.errors import ConfigError

MULTIPLE = 128
MAX_PADDING = 1024
"""Most spare rows of a preset's vocabulary; with more, the preset is for another tokenizer."""
QWEN_LENGTHS = range(151_643, 151_937)
QWEN_ROWS = 151_936
"""Rows of the published Qwen models up to 3B, whose tokenizers have 151,643 to 151,669 entries."""


def resolve_vocab_size(
    model: ModelSection, origin: Origin, tokenizer_length: int
) -> tuple[int, str | None]:
    """Rows of the embedding, and a note if a preset's number was not used.

    Args:
        model: its `vocab_size` is a number or auto; with `init_from` it is the folder's.
        origin: origin of `model.vocab_size`.
        tokenizer_length: number of ids of the tokenizer, added tokens included.

    Raises ConfigError if the user's number, or the model to continue from, has too few rows.
    """
    rounded = -(-tokenizer_length // MULTIPLE) * MULTIPLE
    if tokenizer_length in QWEN_LENGTHS:
        rounded = QWEN_ROWS
    if model.vocab_size == "auto":
        return rounded, None
    if model.init_from is not None or origin.is_user:
        if model.vocab_size < tokenizer_length:
            fix = f"model.vocab_size={rounded}, or auto"
            if model.init_from is not None:
                fix = f"data.tokenizer={model.init_from}, with which this model was trained"
            raise ConfigError(
                f"The embedding has {model.vocab_size} rows, the tokenizer {tokenizer_length} ids.",
                got=origin.where or None,
                fix=fix,
            )
        return model.vocab_size, None
    if tokenizer_length <= model.vocab_size <= tokenizer_length + MAX_PADDING:
        return model.vocab_size, None
    note = (
        f"vocabulary of {rounded} rows for the {tokenizer_length} ids of the tokenizer, "
        f"not the {model.vocab_size} of the model's preset"
    )
    return rounded, note
