"""The tokenizer of a mixture, where one is trained: on the text of all sources, each by its weight.

Of each source the first text is taken, in whole documents, up to its share of `MAX_TRAINING_BYTES`. A source that has less
than its share is read again from its start, as it is in training, so that pairs are counted by weight. The result depends on
the sources, their filters and the weights alone. It is kept in `stores/tokenizer-KEY`, and the stores of all sources
are made with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wikillm.config.mixture import PERIOD
from wikillm.core.log import say
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.sources.read import estimated_bytes
from wikillm.data.tokenizer.train import (
    MAX_TRAINING_BYTES,
    TRAINER_VERSION,
    default_vocabulary,
    train_bpe,
    training_texts,
    write_tokenizer,
)
from wikillm.data.workers.exclusive import exclusive

_WEIGHTING_VERSION = 1
"""Part of the folder's name: raise it with every change of which text is taken."""


def mixture_tokenizer(
    setting: str, plans: Sequence[tuple[str, int, BuildPlan]], area: Path, *, is_main: bool = True
) -> str:
    """The value of data.tokenizer for every source of a mixture. (all ranks)

    Args:
        setting: data.tokenizer of the run, auto or train:N.
        plans: name, samples among every 4096, and plan of each source, each planned with `setting`.
        area: where the stores lie.

    Raises DataError when a source has no text.
    """
    first = plans[0][2].tokenizer
    if first.folder is not None:
        return str(first.folder)  # found here or on a hub
    vocabulary = first.vocabulary
    if vocabulary is None or setting == "auto":
        vocabulary = default_vocabulary(sum(estimated_bytes(plan.sources) for _, _, plan in plans))
    decides = [_WEIGHTING_VERSION, TRAINER_VERSION, MAX_TRAINING_BYTES, vocabulary]
    key = json.dumps(
        [decides, [(count, _facts_of_text(plan)) for _, count, plan in plans]], sort_keys=True
    )
    folder = area / f"tokenizer-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with exclusive(area / f".{folder.name}", "training the tokenizer of the mixture", is_main):
        if not (folder / "tokenizer.json").is_file():
            texts = weighted_texts(plans)
            size = sum(len(text.encode()) for text in texts)
            shares = ", ".join(f"{name} {count / PERIOD:.1%}" for name, count, _ in plans)
            say(
                f"tokenizer: training a byte-level BPE of {vocabulary} tokens on {size / 1e6:.1f} MB of text: {shares}"
            )
            write_tokenizer(train_bpe(texts, vocabulary), folder)
    return str(folder)


def _facts_of_text(plan: BuildPlan) -> dict[str, object]:
    """What decides the text of a source: all facts of its store but those on its tokens and its split."""
    return {
        name: fact
        for name, fact in plan.facts.items()
        if name not in ("data.tokenizer", "data.val_fraction", "eos")
    }


def weighted_texts(plans: Sequence[tuple[str, int, BuildPlan]]) -> list[str]:
    """Texts of all sources, of each so many bytes as its share says, to the last whole document."""
    found = [training_texts(plan, MAX_TRAINING_BYTES * count // PERIOD) for _, count, plan in plans]
    counts = [count for _, count, _ in plans]
    sizes = [sum(len(text.encode()) for text in texts) for texts in found]
    total = min(
        MAX_TRAINING_BYTES,
        max(size * PERIOD // count for size, count in zip(sizes, counts, strict=True)),
    )
    taken: list[str] = []
    for texts, count in zip(found, counts, strict=True):
        left = total * count // PERIOD
        number = 0
        while number == 0 or left > 0:  # one document at least
            text = texts[number % len(texts)]
            taken.append(text)
            left -= len(text.encode())
            number += 1
    return taken
