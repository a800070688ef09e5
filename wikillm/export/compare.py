"""Compare the ids of two tokenizers. Imports no torch, because `wikillm prepare` uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError, DataError
from wikillm.data.tokenizer.tokenizer import TextTokenizer


def compare_tokens(answer: Mapping[str, Any], trained: TextTokenizer, texts: Sequence[str]) -> None:
    """Raises DataError if `answer` (of `plain_transformers.tokenize`) differs from the training
    tokenizer.

    Training reads special tokens in a text as ordinary characters. A plain call of the tokenizer
    recognises special tokens, as chat templates need, even if only the normalized text contains
    one. Texts that contain a special token are compared only in the mode of the training, all other
    texts in both modes.
    """
    added = trained.backend.get_added_tokens_decoder().values()
    special = [trained.eos_token, *(token.content for token in added if token.special)]
    recognised = _with_special_tokens(trained, texts)
    wrong: dict[str, tuple[list[int], list[int]]] = {}
    rows = zip(texts, answer["ordinary"], answer["plain"], recognised, strict=True)
    for text, ordinary, plain, with_special in rows:
        meant = trained.encode(text)
        if ordinary != meant:
            wrong[text] = (ordinary, meant)
        elif plain not in (meant, with_special) and not any(token in text for token in special):
            wrong[text] = (plain, meant)
    opened = f"transformers {answer['transformers']} opens it as {answer['class']}"
    if wrong:
        text, (found, meant) = next(iter(wrong.items()))
        raise DataError(
            "The exported folder would tokenize text differently from training.",
            got=f"{opened}: {len(wrong)} of {len(texts)} texts get other ids, such as\n"
            f"{text[:60]!r}: {_few(found)} instead of {_few(meant)}",
            fix="a tokenizer that can be exported: data.tokenizer=qwen2, or train:N\n"
            "(or another version of transformers: pip install 'transformers==5.23.0')",
        )
    decoded = [trained.decode(ids) for ids in answer["ordinary"]]
    for text, meant_text, found_text in zip(texts, decoded, answer["decoded"], strict=True):
        if meant_text != found_text:
            raise DataError(
                "The exported folder would decode ids to other text than in training.",
                got=f"{opened}: {text[:60]!r} decodes to {found_text[:60]!r} "
                f"instead of {meant_text[:60]!r}",
            )
    if answer["eos_id"] != trained.eos_id or answer["length"] > trained.length:
        raise DataError(
            "The exported folder's special tokens are not the training tokenizer's.",
            got=f"{opened}: end of text {answer['eos_id']} instead of {trained.eos_id}, "
            f"{answer['length']} tokens instead of {trained.length}",
        )


def _with_special_tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, with special tokens recognised."""
    tokenizer.backend.encode_special_tokens = False
    try:
        return tokenizer.encode_batch(texts)
    finally:
        tokenizer.backend.encode_special_tokens = True


def _few(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}]"


def refuse_other_tokenizer(
    given: TextTokenizer, trained: TextTokenizer, texts: Sequence[str], where: Path
) -> None:
    """Raises ConfigError if the tokenizer given for the export is not the run's tokenizer."""
    differing = ids_that_differ(given, trained, texts)
    if differing or given.eos_id != trained.eos_id:
        raise ConfigError(
            "--tokenizer is not the tokenizer that the model was trained with.",
            got=f"{differing} of {len(texts)} texts get other ids than with {where}",
            fix="leave --tokenizer out",
        )


def ids_that_differ(first: TextTokenizer, second: TextTokenizer, texts: Sequence[str]) -> int:
    """The number of `texts` for which the two tokenizers give different ids."""
    return sum(first.encode(text) != second.encode(text) for text in texts)
