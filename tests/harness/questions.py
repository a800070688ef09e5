"""Questions of our own in the three formats, and a model that was trained on their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from harness.tiny_model import tiny_model, write_tokenizer
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.evals.questions import Question

CHINESE = [
    ("太阳从哪边升起", "北方", "东方", "西方", "南方", "B"),
    ("一年有几个月", "十二个", "三个", "七个", "二十个", "A"),
    ("水在零度变成", "火", "油", "沙", "冰", "D"),
    ("鱼生活在", "树上", "山顶", "水里", "云中", "C"),
]
ENGLISH = [
    ("How many legs has a spider?", ["two", "eight", "one hundred"], 1),
    ("Which of these is a fruit?", ["apple", "hammer"], "A"),
]


def write_questions(folder: Path) -> list[str]:
    """The questions as C-Eval, CMMLU and choices ship them; what `--tasks` is given."""
    for name in ("ceval/val", "ceval/dev", "cmmlu/test", "cmmlu/dev"):
        (folder / name).mkdir(parents=True)
    for half, subject in ((CHINESE[:2], "astronomy"), (CHINESE[2:], "nature")):
        rows = [f"{n},{','.join(row)}" for n, row in enumerate(half)]
        text = "id,question,A,B,C,D,answer\n" + "\n".join(rows)
        (folder / f"ceval/val/{subject}_val.csv").write_text(text + "\n", encoding="utf-8-sig")
        dev = "id,question,A,B,C,D,answer,explanation\n" + f'{rows[0]},"因为, 所以"\n'
        (folder / f"ceval/dev/{subject}_dev.csv").write_text(dev, encoding="utf-8")
        header = ",Question,A,B,C,D,Answer\n"
        (folder / f"cmmlu/test/{subject}.csv").write_text(header + "\n".join(rows))
        (folder / f"cmmlu/dev/{subject}.csv").write_text(header + rows[1])
    lines = [
        json.dumps({"question": question, "choices": choices, "answer": answer})
        for question, choices, answer in ENGLISH
    ]
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return [f"ceval:{folder}/ceval", f"cmmlu:{folder}/cmmlu", f"choices:{folder}/own.jsonl"]


def trained_on(
    questions: Sequence[Question], folder: Path, steps: int = 60
) -> tuple[Qwen2ForCausalLM, TextTokenizer]:
    """A tokenizer in `folder` and a model that has learned the answers by heart."""
    texts = [question.solved for question in questions]
    tokenizer = load_tokenizer(write_tokenizer(folder, texts * 10, 500))
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in texts]
    longest = max(map(len, rows))
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of so small products, more threads only wait for each other
    for _ in range(steps):
        model(input_ids=labels.clamp(min=0), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model.eval(), tokenizer
