"""Writes the Hugging Face folder: staged beside the target, checked, then renamed; complete or not there.

    model.safetensors (shards above 5 GB)  config.json  generation_config.json  tokenizer files
    README.md (model card)  wikillm_export.json (where it came from; size and sha256 of every file)

Plain transformers loads it; nothing in it needs WikiLLM. An existing folder is replaced only when it is an
earlier export and holds nothing else.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from wikillm.checkpoints.manifest import seal_files
from wikillm.core.errors import CheckpointError, ConfigError, MachineError
from wikillm.core.files import STAGING_SUFFIX, files_below, rename_durably, write_atomic, write_json
from wikillm.export.card import ExportFacts, render_card
from wikillm.export.target import MARK, check_target
from wikillm.export.weights import (
    Weights,
    as_stored,
    check_written,
    fit,
    read_average,
    read_weights,
    skeleton,
    write_weights,
)

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; `tensors` were read back bit-equal."""

    folder: Path
    parameters: int
    tensors: int
    dtype: str
    size: int  # bytes of all files


def export_model(
    checkpoint: Path,
    target: Path,
    *,
    trust: bool = False,
    tokenizer_dir: Path,
    facts: ExportFacts,
    dtype: str | None = None,
    verified: bool = False,
    ema: bool = False,
) -> Exported:
    """Export a complete checkpoint to `target`.

    Args:
        checkpoint: folder with config.json and weights, gathered or in ZeRO partitions.
        target: the folder to be.
        trust: run the code that the checkpoint's pickles may hold (--trust-checkpoint).
        tokenizer_dir: holds at least tokenizer.json; its files are copied as they are.
        facts: for the model card.
        dtype: float32, bfloat16 or float16; None keeps the type the model was trained in.
        verified: the caller has just checked the checkpoint's manifest.
        ema: take the moving average of the weights (train.ema_decay) instead of the weights.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit its config.json.
        ConfigError: unknown dtype, no tokenizer, or `target` holds something else.
        MachineError: the disk is full or cannot be written.
    """
    check_target(target)
    config = _read_config(checkpoint)
    chosen = _pick_dtype(dtype, config)
    _check_tokenizer(tokenizer_dir)
    model = skeleton(config)
    read = read_average(checkpoint) if ema else read_weights(checkpoint, verified=verified, trust=trust)
    weights = as_stored(fit(read, model, checkpoint), chosen)
    stored = next(iter(weights.values())).dtype
    _finish_config(config, type(model).__name__, stored)
    parameters = sum(tensor.numel() for tensor in weights.values())
    dtype_name = str(stored).removeprefix("torch.")
    card = render_card(
        facts, parameters=parameters, architecture=type(model).__name__, dtype=dtype_name, vocab_size=config.vocab_size
    )
    staging = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        tensors = _write(staging, weights, config, tokenizer_dir, card, facts)
        size = sum(path.stat().st_size for path in files_below(staging))
        _publish(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise MachineError(f"{target} could not be written.", got=str(error), fix="--to another disk") from error
        raise
    return Exported(target, parameters, tensors, dtype_name, size)


def _write(
    staging: Path, weights: Weights, config: PretrainedConfig, tokenizer_dir: Path, card: str, facts: ExportFacts
) -> int:
    """Everything the folder holds, its list of digests last; returns how many tensors were read back equal."""
    staging.mkdir(parents=True)
    write_weights(weights, staging)
    _write_configs(config, staging)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, staging / name)
    write_atomic(staging / "README.md", card)
    tensors = check_written(weights, staging)
    names = [path.relative_to(staging).as_posix() for path in files_below(staging)]
    files = seal_files(staging, names)  # fsync and sha256
    write_json(staging / MARK, {"format_version": 1, "run": facts.name, "step": facts.step, "files": files})
    return tensors


def _read_config(checkpoint: Path) -> PretrainedConfig:
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint} has no config.json: it does not say what its weights are.")
    try:
        return AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint / 'config.json'} cannot be read.", got=str(error)) from error


def _pick_dtype(name: str | None, config: PretrainedConfig) -> torch.dtype | None:
    """The type to store: the asked one, or the one in config.json (partitions are fp32 whatever was trained)."""
    if name is None:
        trained = getattr(config, "dtype", None)
        return DTYPES.get(trained) if isinstance(trained, str) else trained
    if name not in DTYPES:
        raise ConfigError(f"{name!r} is not a type to store weights in.", fix="--dtype float32, bfloat16 or float16")
    return DTYPES[name]


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"There is no tokenizer in {folder}.", got="tokenizer.json is missing", fix="--tokenizer FOLDER"
        )


def _finish_config(config: PretrainedConfig, architecture: str, dtype: torch.dtype) -> None:
    """What plain transformers needs to know. A text starts with EOS, as every document in training did."""
    config.architectures = [architecture]
    config.dtype = dtype
    config.use_cache = True
    if config.bos_token_id is None:
        config.bos_token_id = config.eos_token_id


def _write_configs(config: PretrainedConfig, folder: Path) -> None:
    config.save_pretrained(folder)
    eos = config.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else eos
    GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=eos, pad_token_id=pad).save_pretrained(folder)


def _publish(staging: Path, target: Path) -> None:
    """Put the finished folder in place; an earlier export steps aside first and goes when the new one is there."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.earlier")
    had = target.exists()
    if had:
        rename_durably(target, aside)
    try:
        rename_durably(staging, target)
    except OSError:
        if had:
            rename_durably(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
