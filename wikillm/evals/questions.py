"""Read multiple-choice questions from local files: C-Eval, CMMLU, and WikiLLM's JSONL format.

    ceval:FOLDER   val/SUBJECT_val.csv, dev/SUBJECT_dev.csv: id,question,A,B,C,D,answer
    cmmlu:FOLDER   test/SUBJECT.csv, dev/SUBJECT.csv: ,Question,A,B,C,D,Answer
    choices:FILE   one object per line: question (or context), choices, answer, optionally subject

C-Eval's test files have no answers, so `val` is scored. The examples of few-shot prompts are the
first questions of `dev`. Torch is not imported, and nothing is downloaded.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wikillm.core.errors import ConfigError, DataError, did_you_mean
from wikillm.core.files import sha256_file

Form = Literal["cloze", "letters"]
"""cloze scores the text of each choice after the question; letters lists the choices and scores
their letters."""
BETWEEN = "\n\n"
"""Separates the examples of a prompt, and the last example from the question."""
_HAN = re.compile(r"[\u4e00-\u9fff]")
_LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Question:
    """A question as text. Each choice is scored as the continuation of `prompt`."""

    subject: str
    prompt: str
    choices: tuple[str, ...]
    gold: int

    @property
    def solved(self) -> str:
        """The question with its right answer, for use as an example."""
        return self.prompt + self.choices[self.gold]


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """The questions of a task, and its examples by subject.

    Attributes:
        shots: default number of examples before a question.
        files: sha256 of every file that was read, by path.
    """

    name: str
    kind: str
    form: Form
    shots: int
    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]]
    files: Mapping[str, str]

    def first(self, limit: int | None) -> ChoiceTask:
        """The task with at most `limit` questions, evenly spaced; every call chooses the same."""
        count = len(self.questions)
        if limit is None or limit >= count:
            return self
        chosen = tuple(self.questions[number * count // limit] for number in range(limit))
        return replace(self, questions=chosen)


KINDS = ("ceval", "cmmlu", "choices")


def read_tasks(specs: Sequence[str], form: Form = "cloze") -> list[ChoiceTask]:
    """Read the tasks KIND:PATH. Raises ConfigError or DataError if a task cannot be read."""
    tasks = []
    for spec in specs:
        kind, colon, path = spec.partition(":")
        if kind not in KINDS or not colon or not path:
            near = did_you_mean(kind, KINDS)
            raise ConfigError(
                f"{spec!r} does not name a task.",
                got=f"there is no kind {kind!r}" if kind not in KINDS else "no path",
                fix=f"{near or 'ceval'}:PATH; kinds: ceval:FOLDER, cmmlu:FOLDER, choices:FILE, "
                "and lm_eval:TASK for `wikillm eval`",
            )
        where = Path(os.path.expanduser(path))
        if kind == "choices":
            tasks.append(_read_choices(where, form))
        else:
            tasks.append(_read_folder(kind, where, form))
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        fix = "name each folder only once, and give the files of choices: different names"
        raise ConfigError("Two tasks have the same name.", got=", ".join(names), fix=fix)
    return tasks


def _read_folder(kind: str, folder: Path, form: Form) -> ChoiceTask:
    """Read C-Eval or CMMLU from the unpacked folder of the data set."""
    scored, tail = ("val", "_val") if kind == "ceval" else ("test", "")
    questions: list[Question] = []
    examples: dict[str, tuple[Question, ...]] = {}
    files: dict[str, str] = {}
    for path in sorted((folder / scored).glob(f"*{tail}.csv")):
        subject = path.stem.removesuffix(tail)
        questions += _read_csv(path, subject, form)
        files[f"{scored}/{path.name}"] = sha256_file(path)
        dev = folder / "dev" / f"{subject}{'_dev' if kind == 'ceval' else ''}.csv"
        if dev.is_file():
            examples[subject] = tuple(_read_csv(dev, subject, form))
            files[f"dev/{dev.name}"] = sha256_file(dev)
    if not questions:
        raise DataError(
            f"The folder of {kind} has no questions.",
            got=f"{folder}: no {scored}/SUBJECT{tail}.csv",
            fix=f"{kind}:FOLDER, where FOLDER is the unpacked data set with {scored}/ and dev/",
        )
    return ChoiceTask(kind, kind, form, 5, tuple(questions), examples, files)


def _read_csv(path: Path, subject: str, form: Form) -> Iterator[Question]:
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        names = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
    except csv.Error as error:
        raise _wrong(path, 1, str(error)) from None
    missing = [name for name in ("question", "a", "b", "answer") if name not in names]
    if missing:
        raise DataError(
            "A file of questions lacks columns.",
            got=f"{path}: no {', '.join(missing)}; it has {', '.join(rows.fieldnames or ())}",
            fix="name the columns in the first line: id,question,A,B,C,D,answer",
        )
    letters = [letter for letter in _LETTERS if letter.lower() in names]
    try:
        for row in rows:
            cells = {name: (row[column] or "").strip() for name, column in names.items()}
            # An empty cell is a choice that the question does not have.
            choices = {letter: cells[letter.lower()] for letter in letters if cells[letter.lower()]}
            if not cells["question"] and not choices:
                continue
            answer = cells["answer"].upper()
            if answer not in choices:
                got = f"answer {cells['answer']!r} is not one of {list(choices)}"
                raise _wrong(path, rows.line_num, got)
            gold = list(choices).index(answer)
            texts = list(choices.values())
            yield _as_question(subject, cells["question"], texts, gold, form, is_chinese=True)
    except csv.Error as error:
        raise _wrong(path, rows.line_num, str(error)) from None


def _read_choices(path: Path, form: Form) -> ChoiceTask:
    questions = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            questions.append(_read_line(path, number, line, form))
    if not questions:
        raise DataError("A file of questions is empty.", got=str(path))
    files = {path.name: sha256_file(path)}
    return ChoiceTask(path.stem, "choices", form, 0, tuple(questions), {}, files)


def _read_line(path: Path, number: int, line: str, form: Form) -> Question:
    try:
        value: Any = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise _wrong(path, number, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong(path, number, "not a JSON object")
    choices = value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(text, str) and text for text in choices):
        raise _wrong(path, number, "`choices` is not a list of non-empty texts")
    answer = _gold(value.get("answer"), len(choices))
    if not 2 <= len(choices) <= len(_LETTERS) or answer is None:
        got = f"answer {value.get('answer')!r} does not fit {len(choices)} choices"
        raise _wrong(path, number, got)
    subject = str(value.get("subject", path.stem))
    context = value.get("context")
    if isinstance(context, str):
        return Question(subject, context, tuple(choices), answer)
    question = value.get("question")
    if not isinstance(question, str):
        raise _wrong(path, number, "neither `question` nor `context` is a text")
    is_chinese = bool(_HAN.search(question + "".join(choices)))
    return _as_question(subject, question, choices, answer, form, is_chinese)


def _gold(answer: Any, choices: int) -> int | None:
    """The index of the right choice, from a number or a letter; None if it is not valid."""
    if isinstance(answer, str) and len(answer) == 1:
        answer = _LETTERS.find(answer.upper())
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    return answer if is_number and 0 <= answer < choices else None


def _as_question(
    subject: str, question: str, choices: Sequence[str], gold: int, form: Form, is_chinese: bool
) -> Question:
    """Build the prompt and the scored texts. In English a space precedes the answer."""
    space = "" if is_chinese else " "
    answer = "答案：" if is_chinese else "Answer:"
    if form == "cloze":
        asked = f"问题：{question}" if is_chinese else f"Question: {question}"
        return Question(
            subject, f"{asked}\n{answer}", tuple(space + choice for choice in choices), gold
        )
    listed = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    prompt = "\n".join([question, *listed, answer])
    letters = tuple(space + letter for letter in _LETTERS[: len(choices)])
    return Question(subject, prompt, letters, gold)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            "A file of questions cannot be read.",
            got=f"{path}: {reason}",
            fix="name an existing file in UTF-8",
        ) from None


def _wrong(path: Path, line: int, got: str) -> DataError:
    return DataError(
        "A question cannot be used.",
        got=f"{path}, line {line}: {got}",
        fix='write {"question": "...", "choices": ["...", "..."], "answer": 0}, '
        "or the columns of C-Eval",
    )
