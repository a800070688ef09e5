"""Accuracy of models whose answers are known, the border of context and choice, batches, ranks."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from harness.questions import trained_on, write_questions
from harness.tiny_model import write_tokenizer
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from wikillm.core.errors import ConfigError, DataError
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.evals.choices import (
    ChoiceScore,
    encode_question,
    encode_task,
    score_choices,
    verdict,
    wilson_interval,
)
from wikillm.evals.questions import ChoiceTask, Question, read_tasks


class Unigram(nn.Module):
    """Gives token n the probability `shares[n]`, whatever comes before it."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(shares).log()
        self.forwards = 0

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int, **_: object) -> object:
        self.forwards += 1
        rows = self.logits.expand(len(input_ids), logits_to_keep, -1)
        return CausalLMOutputWithPast(logits=rows)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """One token per byte."""
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("bytes"), ["a"], 257))


def byte_shares(tokenizer: TextTokenizer, bits: dict[str, float]) -> list[float]:
    """The probability of each token: 2 ** -bits of the named ones, the others share the rest."""
    rest = (1 - sum(2**-each for each in bits.values())) / (tokenizer.length - len(bits))
    shares = [rest] * tokenizer.length
    for token, each in bits.items():
        shares[tokenizer.backend.token_to_id(token)] = 2**-each
    return shares


def score(
    model: nn.Module, tokenizer: TextTokenizer, task: ChoiceTask, **options: int
) -> ChoiceScore:
    given = {"batch_size": 8, "shots": 0, "limit": 512, **options}
    encoded = encode_task(tokenizer, task, shots=given["shots"], limit=given["limit"])
    subjects = [question.subject for question in task.questions]
    found = score_choices(model, encoded, subjects, batch_size=given["batch_size"], device="cpu")
    assert found is not None
    return found


def test_accuracy_of_a_unigram_model_by_hand(letters: TextTokenizer) -> None:
    """x costs 1 bit, y 4 and z 5: which answer is the likeliest is known."""
    questions = (
        Question("s", "Q:", ("xx", "y"), 0),  # 2 and 4 bits
        Question("s", "Q:", ("xxxxxx", "y"), 0),  # 6 and 4: wrong; per byte 1 and 4: right
        Question("s", "Q:", ("z", "y"), 0),  # 5 and 4: wrong
        Question("t", "Q:", ("z", "zz", "zzz", "y"), 3),
    )
    task = ChoiceTask("own", "choices", "cloze", 0, questions, {}, {})
    model = Unigram(byte_shares(letters, {"x": 1, "y": 4, "z": 5}))
    found = score(model, letters, task)
    assert found.overall["accuracy"] == 0.5
    assert found.overall["accuracy_by_bytes"] == 0.75
    assert found.overall["chance"] == pytest.approx((0.5 * 3 + 0.25) / 4)
    assert found.overall["bits_per_byte"] == pytest.approx((2 + 6 + 5 + 4) / (2 + 6 + 1 + 1))
    assert found.subjects["s"]["accuracy"] == pytest.approx(1 / 3)
    assert found.subjects["t"]["accuracy"] == 1.0
    assert found.overall["verdict"] == "not above chance"


def test_a_model_that_learned_the_answers_is_right(tmp_path: Path) -> None:
    tasks = read_tasks(write_questions(tmp_path))
    model, tokenizer = trained_on(
        [*tasks[0].questions, *tasks[2].questions], tmp_path / "tokenizer"
    )
    for task in tasks:
        found = score(model, tokenizer, task)
        assert found.overall["accuracy"] == 1.0, task.name
        assert found.overall["bits_per_byte"] < 0.5
        # The same model, with other answers called right.
        others = tuple(
            Question(q.subject, q.prompt, q.choices, (q.gold + 1) % len(q.choices))
            for q in task.questions
        )
        wrong = ChoiceTask("wrong", "choices", "cloze", 0, others, {}, {})
        assert score(model, tokenizer, wrong).overall["accuracy"] == 0.0
    for batch_size in (1, 3):
        again = score(model, tokenizer, tasks[0], batch_size=batch_size)
        bits = score(model, tokenizer, tasks[0]).overall["bits_per_byte"]
        assert again.overall["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_a_token_that_spans_the_border_is_scored_for_all_choices(tmp_path: Path) -> None:
    """As in Qwen2's tokenizer, the colon joins the word behind it: `：北京` is one token."""
    tokenizer = load_tokenizer(
        write_tokenizer(tmp_path, ["答案：北京", "答案", "上海 首都"] * 20, 300)
    )
    question = Question("s", "首都 答案：", ("北京", "上海"), 0)
    encoded = encode_question(tokenizer, question, (), limit=64)
    assert encoded is not None
    whole = tokenizer.encode("首都 答案：北京")
    alone = tokenizer.encode("首都 答案：")
    assert whole[: len(alone)] != alone, "the tokenizer of this test merges over the border"
    right, other = encoded.sequences
    assert right.ids[: right.first] == other.ids[: other.first], "the same context"
    assert right.first == other.first < 1 + len(alone)
    scored = tokenizer.decode(right.ids[right.first :])
    assert scored.endswith("：北京")
    assert encoded.gold_bytes == len(scored.encode())
    assert tokenizer.decode(other.ids[other.first :]).endswith("：上海")


def test_ranks_score_every_question_once_and_call_the_forward_equally_often(
    letters: TextTokenizer,
) -> None:
    questions = tuple(
        Question(f"s{n % 3}", f"Q{n}:", ("x" * (1 + n), "y", "z")[: 2 + n % 2], 0) for n in range(7)
    )
    task = ChoiceTask("own", "choices", "cloze", 0, questions, {}, {})
    shares = byte_shares(letters, {"x": 1, "y": 4, "z": 5})
    alone = score(Unigram(shares), letters, task)
    encoded = encode_task(letters, task, shots=0, limit=64)
    parts: list[tuple[float, ...]] = []
    forwards = set()

    def added(*values: float) -> tuple[float, ...]:
        parts.append(values)
        return tuple(map(sum, zip(*parts, strict=True)))

    for rank in range(3):
        model = Unigram(shares)
        together = score_choices(
            model, encoded, [q.subject for q in questions], batch_size=2, device="cpu",
            rank=rank, world_size=3, sum_over_ranks=added,
        )  # fmt: skip
        forwards.add(model.forwards)
    assert together == alone, "the last rank has the sum of all"
    assert forwards == {4}, "of three questions with seven choices, two at a time"


def test_what_is_too_long_loses_examples_then_context(letters: TextTokenizer) -> None:
    example = Question("s", "Is it so?", (" yes", " no"), 0)  # 13 bytes, and 2 between
    question = Question("s", "0123456789", ("a", "bb"), 1)  # 12 bytes
    for limit, examples, is_cut in ((42, 2, False), (41, 1, False), (12, 0, False), (11, 0, True)):
        encoded = encode_question(letters, question, (example, example), limit=limit)
        assert encoded is not None
        assert max(len(one.ids) for one in encoded.sequences) <= limit + 1
        text = letters.decode(encoded.sequences[1].ids[1:])
        assert text.count("Is it so? yes\n\n") == examples
        assert text.endswith("9bb")
        assert (encoded.has_fewer_examples, encoded.is_cut) == (examples < 2, is_cut)
    assert encode_question(letters, question, (), limit=2) is None
    task = ChoiceTask("own", "choices", "cloze", 0, (question,), {}, {})
    shares = byte_shares(letters, {"a": 1})
    found = score(Unigram(shares), letters, task, limit=2).overall
    assert found == {"questions": 0, "left_out": 1, "with_fewer_examples": 0, "cut": 0}


def test_every_format_of_questions_is_read(tmp_path: Path) -> None:
    ceval, cmmlu, own = read_tasks(write_questions(tmp_path))
    assert ceval.questions == cmmlu.questions
    assert ceval.questions[0].prompt == "问题：太阳从哪边升起\n答案："
    assert ceval.questions[0].choices[ceval.questions[0].gold] == "东方"
    assert ceval.examples["nature"][0].solved == "问题：水在零度变成\n答案：冰"
    assert (len(ceval.files), ceval.shots, own.shots) == (4, 5, 0)
    # The record has the examples that were there, not those that were asked for.
    used = ChoiceScore({}, {}).to_json(ceval, shots=5, max_questions=None, context=8)["shots"]
    assert used == max(len(found) for found in ceval.examples.values()) < 5
    assert own.questions[0].solved == "Question: How many legs has a spider?\nAnswer: eight"
    assert [len(q.choices) for q in own.questions] == [3, 2]
    assert [q.subject for q in ceval.first(2).questions] == ["astronomy", "nature"]
    (listed,) = read_tasks([f"ceval:{tmp_path}/ceval"], "letters")
    assert listed.questions[1].prompt.split("\n") == [
        *("一年有几个月", "A. 十二个", "B. 三个", "C. 七个", "D. 二十个", "答案：")
    ]
    assert listed.questions[1].choices == ("A", "B", "C", "D")
    raw = tmp_path / "raw.jsonl"
    raw.write_text(json.dumps({"context": "Once ", "choices": ["upon", "under"], "answer": "a"}))
    assert read_tasks([f"choices:{raw}"])[0].questions[0].solved == "Once upon"


LONG_CELL = f"id,question,A,B,answer\n0,{'?' * 200_000},x,y,A\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"question": "?", "choices": ["a"], "answer": 0}', "does not fit 1 choices"),
        ("a.jsonl", '\n{"question": "?", "choices": ["a", "b"], "answer": 2}', "line 2"),
        ("a.jsonl", '{"question": "?", "choices": ["a", ""], "answer": 0}', "list of non-empty"),
        ("a.jsonl", '{"choices": ["a", "b"], "answer": 0}', "neither `question`"),
        ("a.jsonl", "[1]", "not a JSON object"),
        ("a.jsonl", "{", "not JSON"),
        ("a.jsonl", "", "empty"),
        ("a.jsonl", '{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}', "surrogates"),
        (
            "a.jsonl",
            json.dumps({"question": "?", "choices": ["a"] * 27, "answer": 0}),
            "answer 0 does not fit 27 choices",
        ),
        ("val/s_val.csv", "id,question,A,B,C,D\n", "no answer"),
        ("val/s_val.csv", "id,question,A,B,answer\n0,?,x,y,C\n", "answer 'C' is not one of"),
        pytest.param("val/s_val.csv", LONG_CELL, "field larger than", id="a long cell"),
        pytest.param("val/s_val.csv", "x" * 200_000, "field larger than", id="a long column"),
        ("s_val.csv", "", "no val/SUBJECT_val.csv"),
        ("a.txt", "", "does not name a task"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / name).write_text(content)
    kind = {".csv": f"ceval:{tmp_path}", ".jsonl": f"choices:{tmp_path / name}"}
    limit = csv.field_size_limit(131_072)  # Python's own; reading a table raises it
    with pytest.raises((DataError, ConfigError)) as caught:
        read_tasks([kind.get(Path(name).suffix, "ceva:x")])
    csv.field_size_limit(limit)
    assert said in str(caught.value)


def test_wilson_interval_and_verdict() -> None:
    """Of 10 in 20: from R, prop.test(10, 20, correct=FALSE): 0.2992980 to 0.7007020."""
    assert wilson_interval(10, 20) == pytest.approx((0.299298, 0.700702), abs=1e-5)
    assert wilson_interval(0, 10)[0] == 0.0
    assert math.isclose(wilson_interval(10, 10)[1], 1.0)
    assert verdict(wilson_interval(26, 100), 0.25) == "not above chance"
    assert verdict(wilson_interval(40, 100), 0.25) == "above chance"
    assert verdict(wilson_interval(1, 100), 0.25) == "below chance"
