"""Copy the tokenizer of a store or of a mixture, or train it on the first text of the sources.

A tokenizer is trained on the first `MAX_TRAINING_BYTES` of kept text, in whole documents, of which
there is at least one. The number of workers makes no difference. In a mixture each source
contributes its share of these bytes. A source with less text is repeated, as in training, so that
pairs are counted by weight. All stores of a mixture use its tokenizer in `stores/tokenizer-KEY`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path

from wikillm.config.mixture import PERIOD
from wikillm.core.log import say, warn
from wikillm.data.funnel import Funnel, merged
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.sources.read import estimated_bytes
from wikillm.data.tokenizer.tokenizer import TextTokenizer, copy_tokenizer, load_tokenizer
from wikillm.data.tokenizer.train import (
    MAX_TRAINING_BYTES,
    TRAINER_VERSION,
    default_vocabulary,
    train_bpe,
    write_tokenizer,
)
from wikillm.data.workers.exclusive import exclusive
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress

_WEIGHTING_VERSION = 1
"""Part of the folder's name. Raise it whenever the choice of the training text changes."""


def store_tokenizer(plan: BuildPlan) -> TextTokenizer:
    """The store's own copy of the tokenizer, which is copied or trained if it is missing."""
    folder = plan.store / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    if plan.tokenizer.folder is not None:
        copy_tokenizer(plan.tokenizer.folder, folder)
        return load_tokenizer(folder)
    wanted = plan.tokenizer.vocabulary
    assert wanted is not None, "a tokenizer without a folder has a size to train"
    _train(training_texts(plan), wanted, folder)
    trained = load_tokenizer(folder)
    if trained.length < wanted:
        warn(f"the text yields only {trained.length} tokens instead of {wanted}")
    return trained


def _train(texts: Sequence[str], vocabulary: int, folder: Path, shares: str = "") -> None:
    size = f"{_size(texts) / 1e6:.1f} MB of text"
    say(f"tokenizer: training a byte-level BPE of {vocabulary} tokens on {size}{shares}")
    write_tokenizer(train_bpe(texts, vocabulary), folder)


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def training_texts(plan: BuildPlan, max_bytes: int = MAX_TRAINING_BYTES) -> list[str]:
    """The first `max_bytes` of kept text, in whole documents and at least one."""
    limit = min(max_bytes, plan.max_text_bytes or max_bytes)
    estimate = min(estimated_bytes(plan.sources), limit)
    progress = Progress("reading text for the tokenizer", estimate, relay=plan.relay)
    texts: list[str] = []
    funnels: list[Funnel] = []
    size = 0
    # The worker processes clean the text; closing the generator at the limit stops them.
    raws = plan.reader.read()
    jobs = run_jobs(plan.clean_job, raws, plan.workers, progress.add, progress.tick)
    with closing(jobs) as results:
        for found, funnel in results:
            funnels.append(funnel)
            for text in found:
                size += len(text.encode())
                if size > limit and texts:
                    break
                texts.append(text)
            if size > limit:
                break
    progress.finish()
    if not texts:
        raise plan.nothing_left(merged(funnels))
    return texts


def mixture_tokenizer(
    setting: str, plans: Sequence[tuple[str, int, BuildPlan]], stores: Path, *, is_main: bool = True
) -> str:
    """The value of data.tokenizer for every source of a mixture. (all ranks)

    Args:
        setting: data.tokenizer of the run, auto or train:N.
        plans: (name, samples in every 4096, plan) of each source, all planned with `setting`.
        stores: the folder that holds the stores.

    Raises DataError when a source has no text.
    """
    first = plans[0][2].tokenizer
    if first.folder is not None:
        return str(first.folder)  # found on this machine, or downloaded
    vocabulary = first.vocabulary
    if vocabulary is None or setting == "auto":
        vocabulary = default_vocabulary(sum(estimated_bytes(plan.sources) for _, _, plan in plans))
    # The name contains a hash of everything that decides the tokenizer.
    decides = [_WEIGHTING_VERSION, TRAINER_VERSION, MAX_TRAINING_BYTES, vocabulary]
    texts_of = [(count, _facts_of_text(plan)) for _, count, plan in plans]
    key = json.dumps([decides, texts_of], sort_keys=True)
    folder = stores / f"tokenizer-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    with exclusive(stores / f".{folder.name}", "training the tokenizer of the mixture", is_main):
        if not (folder / "tokenizer.json").is_file():
            shares = ", ".join(f"{name} {count / PERIOD:.1%}" for name, count, _ in plans)
            _train(weighted_texts(plans), vocabulary, folder, f": {shares}")
    return str(folder)


def _facts_of_text(plan: BuildPlan) -> dict[str, object]:
    """The facts that decide the text of a source: all except the facts of tokens and split."""
    ignored = ("data.tokenizer", "data.val_fraction", "eos")
    return {name: fact for name, fact in plan.facts.items() if name not in ignored}


def weighted_texts(plans: Sequence[tuple[str, int, BuildPlan]]) -> list[str]:
    """Texts of all sources, with each source's share of the bytes rounded up to whole documents."""
    counts = [count for _, count, _ in plans]
    found = [training_texts(plan, MAX_TRAINING_BYTES * count // PERIOD) for _, count, plan in plans]
    # The source with the most text for its weight sets the total; the others are repeated.
    total = max(_size(texts) * PERIOD // count for texts, count in zip(found, counts, strict=True))
    total = min(MAX_TRAINING_BYTES, total)
    taken: list[str] = []
    for texts, count in zip(found, counts, strict=True):
        remaining = total * count // PERIOD
        for text in cycle(texts):
            taken.append(text)
            remaining -= len(text.encode())
            if remaining <= 0:
                break
    return taken
