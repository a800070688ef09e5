"""A small generated corpus with a learnable pattern, so that no data has to be shipped.

A first-order Markov chain over a Zipf-like vocabulary gives each word a few likely successors. A
model that learns it does better than unigram frequencies. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

# Common characters: the first 16 rows of level 1 of GB 2312.
HAN = [
    bytes((row, cell)).decode("gb2312") for row in range(0xB0, 0xC0) for cell in range(0xA1, 0xFF)
]
ENGLISH_SYLLABLES = [
    "ba",
    "con",
    "de",
    "er",
    "gra",
    "in",
    "jo",
    "lu",
    "mer",
    "no",
    "or",
    "qua",
    "sti",
    "the",
    "un",
    "ment",
]


def _words(rng: random.Random, count: int, *, chinese: bool) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        parts = rng.choices(HAN if chinese else ENGLISH_SYLLABLES, k=rng.choice((1, 2, 2, 2, 3)))
        word = "".join(parts)
        if word not in words:
            words.append(word)
    return words


def _chain(rng: random.Random, size: int) -> list[list[int]]:
    """Six likely successors per word. Frequent words (small numbers) are chosen more often."""
    weights = [1 / (rank + 2) for rank in range(size)]
    return [rng.choices(range(size), weights, k=6) for _ in range(size)]


def _sentence(
    rng: random.Random, words: list[str], chain: list[list[int]], *, chinese: bool
) -> str:
    at = rng.randrange(len(words))
    picked = []
    for _ in range(rng.randint(6, 18)):
        picked.append(words[at])
        at = rng.choice(chain[at]) if rng.random() < 0.9 else rng.randrange(len(words))
    return "".join(picked) + "。" if chinese else " ".join(picked).capitalize() + ". "


def write_corpus(
    path: Path, *, size: int = 300_000, seed: int = 7, chinese_share: float = 0.6
) -> Path:
    """Write JSON Lines with `title` and `text`: `size` bytes in documents of 300 to 4,000 bytes."""
    rng = random.Random(seed)
    tongues = {}
    for chinese in (True, False):
        words = _words(rng, 600, chinese=chinese)
        tongues[chinese] = (words, _chain(rng, len(words)))
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            chinese = rng.random() < chinese_share
            words, chain = tongues[chinese]
            paragraphs = [
                "".join(
                    _sentence(rng, words, chain, chinese=chinese) for _ in range(rng.randint(2, 7))
                ).strip()
                for _ in range(rng.randint(2, 8))
            ]
            record = {"title": "".join(rng.choices(words, k=2)), "text": "\n".join(paragraphs)}
            line = json.dumps(record, ensure_ascii=False) + "\n"
            written += len(line.encode())
            file.write(line)
    return path
