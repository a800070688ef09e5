"""Several hundred texts on which an exported tokenizer must give the training tokenizer's ids.

There are three kinds of texts:
- fixed cases that different kinds of tokenizers treat differently: splits of digits, spaces, signs
  and line breaks; normal forms; characters outside of a vocabulary; look-alikes of special tokens;
- the tokenizer's own tokens in random order, which cover the languages that it was made for;
- held-out text of the run, if its token store still exists.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from wikillm.data.tokenizer.tokenizer import TextTokenizer

_FROM_VOCABULARY = 200
_MAX_CHARACTERS = 400  # characters of one text

_HANZI = (
    "北京是中国的首都，位于华北平原。", "第1号文章讲述一条河流的故事",
    "長江發源於青藏高原，全長六千三百公里。", "水火木金土", "他说：“你好！”——然后走了……",
    "《史记》卷一百二十三", "二〇二四年五月六日", "𠀀𠮷𪚥𫝀𬺰", "〇々〆ヶ", "龘靐齉齾", "ㄅㄆㄇㄈ",
    "１２３４５６ＡＢＣ，．！", "　全角空格　在这里　", "中文English混排123测试",
)  # fmt: skip
_DIGITS = (
    "1", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,234,567.89", "2024-05-06",
    "12:34:56", "0x7fff", "1e-10", "007", "v1.2.3", "٠١٢٣٤", "०१२३", "Ⅷ ⅷ ⑧ ⅔ x² H₂O", "10⁸",
    "-5 +5 ±5", "１２３", "+86 10 1234 5678",
)  # fmt: skip
_SPACES = (
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " a", "a ", " a ", "  a  b  ", "a  b\n\nc",
    "a\tb\t\tc", "a \n b", "\n a\n", "a\r\nb\r\n\r\nc", "a\u00a0b", "a\u2003b\u2009c", "a\u3000b",
    "a\u200bb", "\ufeffa", "a\u2028b\u2029c", " \n \n ", "    def f(x):\n        return x\n",
    "a\x0bb\x0cc",
)  # fmt: skip
_WORDS = (
    "The quick brown fox 12345 jumps", " Don't 2024-05-06 naïve café.",
    "I'M I'm i'LL we've THEY'D it's", "hello,world!Hello, World!?", "UPPER lower MiXeD",
    "snake_case camelCase kebab-case", "https://example.com/a?b=c&d=%20#e", "user@example.com",
    "C:\\path\\file.txt", "{\"a\": [1, null, true]}", "a+b=c; d*=e/f;", "== Title ==",
    "[[link|text]] {{template}}", "$E=mc^2$", "<p class=\"x\">y</p>", "…—–-―", "'\"`´‘’“”«»",
    "!!!???...,,,", "#hashtag @mention", "🙂!",
)  # fmt: skip
_RARE = (
    "e\u0301 é", "\u0041\u030a Å \u212b", "ﬁ ﬂ ﬀ", "ǅ ǆ Ǆ", "İstanbul ıI", "ß ẞ SS",
    "ὈΔΥΣΣΕΎΣ ὀδυσσεύς", "Москва — столица", "שָׁלוֹם", "السَّلَامُ عَلَيْكُم", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "안녕하세요 \u1112\u1161\u11ab", "こんにちは カタカナ ｶﾅ", "Tiếng Việt",
    "ಕನ್ನಡ", "ⵜⵉⴼⵉⵏⴰⵖ", "ᚠᚢᚦ", "😀😃", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳🇫🇷", "👍🏽", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\u202eabc\u202c", "a\u00adb", "\u0000", "a\x01b\x1fc", "\x7f", "\ufffd", "\ufffe",
    "\U0010ffff", "\ue000", "Z͑ͫ̓a̴l̷g̸o", "①②③", "♠♥♦♣ ←→ ∑∫√∞", "a\u0300\u0301\u0302", "㌔㍍ ㈱",
)  # fmt: skip
_LOOK_ALIKES = (
    "<|endoftext|>", "<|im_start|>user", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|eot_id|>", "<s>", "</s>", "<s>a</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[CLS] a [SEP]",
    "[PAD]", "[UNK]", "[MASK]", "<mask>", "<think>", "<0x0A>", "<0xE4>", "▁a▁b", "##ing", "Ġa",
    "Ċ", "<|endoftext|", "<| endoftext |>", "< |endoftext|>", "|endoftext|", "<|ENDOFTEXT|>",
    "<|endoftext|><|endoftext|>", " <|endoftext|> ", "\n<|im_end|>\n", "中<|endoftext|>文", "@@",
    "</w>",
)  # fmt: skip
FIXED = (*_HANZI, *_DIGITS, *_SPACES, *_WORDS, *_RARE, *_LOOK_ALIKES)
PROMPT = "The history of 北京"


def probe_texts(tokenizer: TextTokenizer, held_out: Iterable[str] = ()) -> list[str]:
    """All texts for a tokenizer, without duplicates."""
    special = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    forms = ("{}", " {}", "{} ", "a{}中")
    around = [form.replace("{}", token) for token in special[:50] for form in forms]
    texts = [
        *FIXED,
        *around,
        *_of_vocabulary(tokenizer),
        *(text[:_MAX_CHARACTERS] for text in held_out),
    ]
    return list(dict.fromkeys(texts))


def _of_vocabulary(tokenizer: TextTokenizer) -> list[str]:
    """Random sequences of tokens, decoded. Bytes that are not valid UTF-8 become U+FFFD."""
    generator = random.Random(0)
    rows = range(tokenizer.length)
    drawn = [generator.choices(rows, k=generator.randint(1, 24)) for _ in range(_FROM_VOCABULARY)]
    return [tokenizer.decode(ids)[:_MAX_CHARACTERS] for ids in drawn]


def probe_ids(tokenizer: TextTokenizer, positions: int) -> Sequence[int]:
    """A row of at most 128 ids for the model: half from real text, the rest random."""
    count = min(128, positions)
    text = tokenizer.encode("".join(_HANZI + _WORDS))[: count // 2]
    generator = random.Random(1)
    return text + generator.choices(range(tokenizer.length), k=count - len(text))
