"""Multiple-choice accuracy, from the probability of each choice after the question.

Context and choice are encoded together, as one text. For all choices of a question, scoring starts
at the first token in which any choice differs from the encoded context. So a token that spans the
boundary is scored, and all choices are conditioned on the same tokens.

If a text is longer than the model reads at once, examples are dropped, beginning with the first. If
dropping all examples is not enough, the context is cut from the left, equally for all choices. A
question whose choices leave no room for context is left out. All three cases are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wikillm.data.tokenizer.tokenizer import TextTokenizer
from wikillm.evals.likelihood import TokenSequence, batches_of, negative_log_likelihoods
from wikillm.evals.loss import Sum
from wikillm.evals.questions import BETWEEN, ChoiceTask, Question
from wikillm.evals.text import start_id

_Z = 1.959964  # the two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """The sequences of a question's choices, all with the same context.

    Attributes:
        gold_bytes: UTF-8 bytes of the text that the scored tokens of the right choice cover.
        has_fewer_examples: whether examples were dropped to fit the context.
        is_cut: whether the context was cut from the left.
    """

    question: Question
    sequences: tuple[TokenSequence, ...]
    gold_bytes: int
    has_fewer_examples: bool
    is_cut: bool


def encode_question(
    tokenizer: TextTokenizer, question: Question, examples: Sequence[Question], *, limit: int
) -> EncodedQuestion | None:
    """Join examples, question and choices, and encode them. Returns None if a choice is too long.

    Args:
        limit: number of tokens that the model reads at once.
    """
    backend = tokenizer.backend
    start = start_id(backend, tokenizer.eos_id)
    # Drop examples until the longest choice fits.
    for count in range(len(examples), -1, -1):
        solved = [example.solved for example in examples[len(examples) - count :]]
        context = BETWEEN.join([*solved, question.prompt])
        texts = [context, *(context + choice for choice in question.choices)]
        context_alone, *whole = backend.encode_batch(texts, add_special_tokens=False)
        longest = max(len(encoding.ids) for encoding in whole)
        if longest <= limit:
            break
    # The start token takes one position; the last token takes none, because it is only a target.
    cut = max(0, longest - limit)
    shared = min(_common_prefix(context_alone.ids, encoding.ids) for encoding in whole)
    if cut and shared <= cut:
        return None
    sequences = tuple(
        TokenSequence([start, *encoding.ids[cut:]], 1 + shared - cut) for encoding in whole
    )
    gold = whole[question.gold]
    begin = gold.offsets[shared][0] if shared < len(gold.ids) else len(context)
    scored = (context + question.choices[question.gold])[begin:]
    fewer = count < len(examples)
    return EncodedQuestion(question, sequences, len(scored.encode()), fewer, cut > 0)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix, at most len(second) - 1 so that a token is left to score."""
    count = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        count += 1
    return min(count, len(second) - 1)


@dataclass(slots=True)
class _Tally:
    """Sums over the questions of a subject. Ranks exchange the fields in this order."""

    questions: float = 0.0
    correct: float = 0.0
    correct_by_bytes: float = 0.0
    chance: float = 0.0
    gold_nats: float = 0.0
    gold_bytes: float = 0.0
    fewer_examples: float = 0.0
    cut: float = 0.0

    def add(self, encoded: EncodedQuestion, nats: Sequence[float]) -> None:
        question = encoded.question
        # Ties go to the first choice.
        sizes = [max(1, len(choice.strip().encode())) for choice in question.choices]
        by_bytes = [loss / size for loss, size in zip(nats, sizes, strict=True)]
        self.questions += 1
        self.correct += nats.index(min(nats)) == question.gold
        self.correct_by_bytes += by_bytes.index(min(by_bytes)) == question.gold
        self.chance += 1 / len(question.choices)
        self.gold_nats += nats[question.gold]
        self.gold_bytes += encoded.gold_bytes
        self.fewer_examples += encoded.has_fewer_examples
        self.cut += encoded.is_cut

    def values(self) -> tuple[float, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """The scores on a task, over all questions and by subject."""

    overall: dict[str, Any]
    subjects: dict[str, dict[str, Any]]

    def to_json(
        self, task: ChoiceTask, *, shots: int, max_questions: int | None, context: int
    ) -> dict[str, Any]:
        """The task in a record (see `results`): the scores, and the settings and files used."""
        return {
            "task": task.name,
            "kind": task.kind,
            "form": task.form,
            "shots": min(shots, max(map(len, task.examples.values()), default=0)),
            "max_questions": max_questions,
            "context": context,
            "overall": self.overall,
            "subjects": self.subjects,
            "files": dict(task.files),
        }


def encode_task(
    tokenizer: TextTokenizer, task: ChoiceTask, *, shots: int, limit: int
) -> list[EncodedQuestion | None]:
    """Encode all questions, each with the first `shots` examples of its subject, in order."""
    return [
        encode_question(
            tokenizer, question, task.examples.get(question.subject, ())[:shots], limit=limit
        )
        for question in task.questions
    ]


def score_choices(
    model: torch.nn.Module,
    encoded: Sequence[EncodedQuestion | None],
    subjects: Sequence[str],
    *,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: Sum = lambda *values: values,
    should_stop: Callable[[], bool] = lambda: False,
) -> ChoiceScore | None:
    """Score a task; None when `should_stop` returned True. (all ranks)

    Each rank scores every `world_size`-th question. All ranks run the same number of forwards.

    Args:
        encoded: result of `encode_task`, the same on every rank.
        subjects: subject of each question.
        batch_size: maximum number of choices per forward.
    """
    scored = [question for question in encoded if question is not None]
    parts = [scored[number::world_size] for number in range(world_size)]  # of each rank
    lengths = [[len(s.ids) for question in part for s in question.sequences] for part in parts]
    forwards = max(len(batches_of(of_rank, batch_size)) for of_rank in lengths)
    found = negative_log_likelihoods(
        model,
        [sequence for question in parts[rank] for sequence in question.sequences],
        batch_size=batch_size,
        device=device,
        forwards=forwards,
        should_stop=should_stop,
    )
    if found is None:
        return None
    tallies = {subject: _Tally() for subject in dict.fromkeys(subjects)}
    losses = iter(found)
    for question in parts[rank]:
        nats = [next(losses) for _ in question.sequences]
        tallies[question.question.subject].add(question, nats)
    left_out = Counter(s for s, item in zip(subjects, encoded, strict=True) if item is None)
    # Add up all subjects over the ranks in one exchange.
    width = len(_Tally.__slots__)
    sums = sum_over_ranks(*(value for tally in tallies.values() for value in tally.values()))
    totals = [_Tally(*sums[n * width : (n + 1) * width]) for n in range(len(tallies))]
    overall = _Tally(
        *(math.fsum(column) for column in zip(*(t.values() for t in totals), strict=True))
    )
    return ChoiceScore(
        _summary(overall, left_out.total()),
        {
            name: _summary(tally, left_out[name])
            for name, tally in zip(tallies, totals, strict=True)
        },
    )


def _summary(tally: _Tally, left_out: int) -> dict[str, Any]:
    """The scores of a subject for a record; only the counts if no question was scored."""
    counts = {
        "questions": int(tally.questions),
        "left_out": left_out,
        "with_fewer_examples": int(tally.fewer_examples),
        "cut": int(tally.cut),
    }
    if not tally.questions:
        return counts
    chance = tally.chance / tally.questions
    interval = wilson_interval(tally.correct, tally.questions)
    by_bytes = wilson_interval(tally.correct_by_bytes, tally.questions)
    return {
        **counts,
        "accuracy": tally.correct / tally.questions,
        "interval": list(interval),
        "verdict": verdict(interval, chance),
        "accuracy_by_bytes": tally.correct_by_bytes / tally.questions,
        "interval_by_bytes": list(by_bytes),
        "verdict_by_bytes": verdict(by_bytes, chance),
        "chance": chance,
        "bits_per_byte": tally.gold_nats / math.log(2) / tally.gold_bytes,
    }


def wilson_interval(correct: float, questions: float) -> tuple[float, float]:
    """95 % confidence interval of a share (E. B. Wilson, JASA 22, 1927, p. 209)."""
    share = correct / questions
    spread = _Z**2 / questions
    center = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / questions + spread / (4 * questions))
    half /= 1 + spread
    return max(0.0, center - half), min(1.0, center + half)


def verdict(interval: tuple[float, float], chance: float) -> str:
    """Compare a confidence interval with the accuracy of guessing."""
    low, high = interval
    if low > chance:
        return "above chance"
    return "below chance" if high < chance else "not above chance"
