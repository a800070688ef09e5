"""Small tokenizers of the kinds that users supply, as folders with a tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from wikillm.core.files import write_json
from wikillm.data.tokenizer.train import train_bpe, write_tokenizer

LLAMA3_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LINES = (
    "第1号文章讲述一条河流的故事，水与火。北京是中国的首都。",
    "The quick brown fox 12345 jumps over the lazy dog. Don't!",
    "In 2024-05-06 the café was naïve: a  b\n\nc, １２３ and 67890.",
    "长江发源于青藏高原，全长六千三百公里。 The history of it.",
)


def _byte_level(
    tokenizer: Tokenizer, lines: Iterable[str], special: list[str], size: int = 420
) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def _template(tokenizer: Tokenizer, single: str, *names: str) -> None:
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def qwen2(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """The kind that `data.tokenizer=train:N` produces."""
    return train_bpe(lines, 420), {}


def llama3(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    splits = pre_tokenizers.Split(Regex(LLAMA3_SPLITS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splits, byte_level])
    _byte_level(tokenizer, lines, [])
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    _template(tokenizer, "<|begin_of_text|> $A", "<|begin_of_text|>")
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 131072,
    }


def llama(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """SentencePiece BPE with byte fallback, in the format of Llama 2 and Mistral."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    content = tokenizer.to_str()
    tokenizer = Tokenizer.from_str(_only_added(content, {"<unk>", "<s>", "</s>"}))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _template(tokenizer, "<s> $A", "<s>")
    return tokenizer, {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "legacy": False,
        "bos_token": {
            "__type": "AddedToken",
            "content": "<s>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
        },
        "eos_token": {
            "__type": "AddedToken",
            "content": "</s>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
        },
        "unk_token": "<unk>",
    }


def _only_added(content: str, names: set[str]) -> str:
    """Keep `names` as special tokens. Users' tokenizers have the rest as ordinary entries."""
    import json

    value = json.loads(content)
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] in names]
    return json.dumps(value)


def unigram(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        lines,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    _template(tokenizer, "$A </s>", "</s>")
    return tokenizer, {
        "tokenizer_class": "T5TokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_ids": 0,
    }


def wordpiece(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<eos>"]
    tokenizer.train_from_iterator(
        lines,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    more = {
        "do_lower_case": False,
        "eos_token": "<eos>",
        "unk_token": "[UNK]",
        "model_max_length": 8,
    }
    return tokenizer, {"tokenizer_class": "BertTokenizer", **names, **more}


def gpt2(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE. A space precedes every text, and the mask absorbs the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    _byte_level(tokenizer, lines, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    }
    return tokenizer, {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, **names}


def wordlevel(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Whole words, an EOS that is no added token, and a special token outside the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["[UNK]", "</s>"]
    tokenizer.train_from_iterator(
        lines,
        trainers.WordLevelTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    tokenizer = Tokenizer.from_str(_only_added(tokenizer.to_str(), {"[UNK]"}))
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "[PAD]",
    }


def marked(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Qwen2's splits, added tokens with flags, and an EOS that is not a special token."""
    tokenizer = train_bpe(lines, 420)
    tokenizer.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken("<end>", normalized=False)]
    )
    tokenizer.add_special_tokens([AddedToken("<image>", lstrip=True, rstrip=True, special=True)])
    return tokenizer, {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<end>",
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": "{% for message in messages %}<|im_start|>{{ message['content'] }}"
        "<|im_end|>{% endfor %}",
    }


def qwen3(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Qwen2's splits with ordinary added tokens, as Qwen3 and Qwen2.5 have."""
    tokenizer = train_bpe(lines, 420)
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token in ("<tool_call>", "</tool_call>", "<think>")
        ]
    )
    return tokenizer, {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


def dropout(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """DeepSeek's pre-tokenization (hanzi and digits separate), with BPE dropout left enabled."""
    tokenizer = Tokenizer(models.BPE(dropout=0.3))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return _byte_level(tokenizer, lines, ["<|endoftext|>"]), {
        "tokenizer_class": "LlamaTokenizerFast"
    }


def lowered(lines: list[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Lower-cased text, in which a normalized special token also matches other cases."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _byte_level(tokenizer, lines, ["<|endoftext|>"])
    tokenizer.add_special_tokens([AddedToken("<|Upper|>", normalized=True)])
    return tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}


KINDS: dict[str, Callable[[list[str]], tuple[Tokenizer, dict[str, Any]]]] = {
    kind.__name__: kind
    for kind in (
        *(qwen2, qwen3, llama3, llama, unigram, wordpiece),
        *(gpt2, wordlevel, marked, dropout, lowered),
    )
}
OF_QWEN2S_KIND = ("qwen2", "qwen3")


def write_foreign(kind: str, folder: Path) -> Path:
    """Write a tokenizer of this kind to `folder`."""
    tokenizer, config = KINDS[kind]([*LINES] * 10)
    if kind == "qwen2":
        write_tokenizer(tokenizer, folder)
        return folder
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    return folder
