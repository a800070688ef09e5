"""A small tokenizer and language model for tests, and a checkpoint folder with the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from wikillm.checkpoints.layout import STATE, checkpoint_name
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest
from wikillm.core.files import write_json
from wikillm.data.tokenizer.train import QWEN2_SPLITS

EOS = "<|endoftext|>"


def write_tokenizer(folder: Path, lines: Iterable[str], size: int = 400) -> Path:
    """Write a byte-level BPE like Qwen2's, with EOS as first token, as transformers loads it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLITS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": 64,
    }
    write_json(folder / "tokenizer_config.json", config)
    return folder


def tiny_config(*, tied: bool = True, vocab_size: int = 512, eos_id: int = 0) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
        attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def tiny_model(
    *, tied: bool = True, dtype: torch.dtype = torch.float32, eos_id: int = 0
) -> Qwen2ForCausalLM:
    """A model with weights from a fixed seed and no zero biases. Keeps the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Qwen2ForCausalLM(tiny_config(tied=tied, eos_id=eos_id))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.05)
        return model.to(dtype)


def seal(checkpoint: Path, step: int, state: dict[str, object] | None = None) -> Path:
    """Complete a checkpoint folder: write its state, then its manifest."""
    write_json(checkpoint / STATE, {"step": step, **(state or {})})
    write_manifest(
        checkpoint,
        seal_files(checkpoint, files_to_list(checkpoint)),
        {"step": step, "world_size": 1},
    )
    return checkpoint


def write_checkpoint(run: Path, model: Qwen2ForCausalLM, step: int = 7) -> Path:
    """Write a complete RUN/checkpoints/checkpoint-N with gathered weights."""
    checkpoint = run / "checkpoints" / checkpoint_name(step)
    model.save_pretrained(checkpoint)
    return seal(checkpoint, step)
