"""Train a byte-level BPE with Qwen2's normaliser, splitting and special tokens on given texts.

The result depends on the texts alone, not on the number of processes or threads (tested). A MB of
Chinese takes 1.9 s of CPU time and 65 MB of memory. `MAX_TRAINING_BYTES` comes from a measurement
on 27 MB of mixed Chinese: training 8,000 tokens on 4, 8, 16 and 23 MB gave 3.28, 3.30, 3.31 and
3.31 bytes per token of held-out text. `prepare/tokenizer.py` chooses the texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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

from wikillm.core.files import write_atomic, write_json

TRAINER_VERSION = 1
"""Part of a store's fingerprint: raise it whenever equal texts give another tokenizer."""
MAX_TRAINING_BYTES = 16 * 10**6
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN = SPECIAL_TOKENS[0]

QWEN2_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, after at most one other character
    r"|\p{N}"  # a digit
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation and symbols
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line breaks, white space
)


def default_vocabulary(estimated_bytes: int) -> int:
    """Size for `data.tokenizer=auto`: 8,000 up to 64 MB of source, 16,000 up to 1 GB, then 32,000.

    In a small corpus many tokens of a large vocabulary would be too rare to learn embeddings for.
    """
    if estimated_bytes < 64 * 10**6:
        return 8000
    return 16_000 if estimated_bytes < 10**9 else 32_000


def train_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train `vocabulary` tokens, special tokens included; fewer if the texts lack pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = pre_tokenizers.Split(Regex(QWEN2_SPLITS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a trained tokenizer for `transformers.AutoTokenizer`, tokenizer.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
