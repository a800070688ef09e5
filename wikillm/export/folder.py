"""Writes the Hugging Face folder: staged beside the target, checked, proved, then renamed; complete or not there.

    model.safetensors (shards above 5 GB)  config.json  generation_config.json  tokenizer.json  tokenizer_config.json
    README.md (model card)  wikillm_export.json (where it came from; size and sha256 of every file)

Plain transformers loads it; nothing in it needs WikiLLM. Before it gets its name, a process without WikiLLM opens it and
must find the training tokenizer's ids and the trained model's logits (`prove.py`). A Qwen2 model whose tokenizer is of
another kind is written as Llama (`carry.py` says why). An existing folder is replaced only when it is an earlier export
and holds nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from wikillm.checkpoints.manifest import seal_files
from wikillm.core.errors import CheckpointError, ConfigError, MachineError
from wikillm.core.files import STAGING_SUFFIX, files_below, rename_durably, write_atomic, write_json
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.export.card import ExportFacts, render_card
from wikillm.export.carry import model_type_for, tokenizer_files
from wikillm.export.compare import refuse_other_tokenizer
from wikillm.export.probe import probe_ids, probe_texts
from wikillm.export.prove import Proof, prove_folder
from wikillm.export.target import MARK, check_target
from wikillm.export.weights import (
    Weights,
    as_llama,
    as_stored,
    check_written,
    fit,
    read_average,
    read_weights,
    skeleton,
    trained_logits,
    write_weights,
)

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; `tensors` were read back bit-equal."""

    folder: Path
    parameters: int
    tensors: int
    dtype: str
    size: int  # bytes of all files
    architecture: str
    proof: Proof | None  # None: not asked for


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the folder must give: the ids of `texts` by `trained`, and `logits` for `ids`."""

    trained: TextTokenizer
    texts: Sequence[str]
    ids: Sequence[int]
    logits: torch.Tensor
    dtype: str

    @classmethod
    def of(
        cls,
        trained: TextTokenizer,
        texts: Sequence[str],
        config: PretrainedConfig,
        weights: Weights,
        dtype: str,
    ) -> _Claim:
        """Before the weights are written in another model's names."""
        ids = probe_ids(trained, config.max_position_embeddings)
        return cls(trained, texts, ids, trained_logits(config, weights, ids), dtype)


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
    trained_with: Path | None = None,
    held_out: Sequence[str] = (),
    prove: bool = True,
) -> Exported:
    """Export a complete checkpoint to `target`.

    Args:
        checkpoint: folder with config.json and weights, gathered or in ZeRO partitions.
        target: the folder to be.
        trust: run the code that the checkpoint's pickles may hold (--trust-checkpoint).
        tokenizer_dir: holds at least tokenizer.json.
        facts: for the model card.
        dtype: float32, bfloat16 or float16; None keeps the type the model was trained in.
        verified: the caller has just checked the checkpoint's manifest.
        ema: take the moving average of the weights (train.ema_decay) instead of the weights.
        trained_with: folder of the tokenizer that the model was trained with; None where only `tokenizer_dir` is known.
        held_out: texts that the proof takes beside its own.
        prove: False for a folder that only this process reads.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit its config.json; or the folder computes other logits.
        ConfigError: unknown dtype, no tokenizer or another than the run's, or `target` holds something else.
        DataError: the folder would give other ids than the model was trained on.
        MachineError: the disk is full or cannot be written, or plain transformers could not open the folder.
    """
    check_target(target)
    config = _read_config(checkpoint)
    chosen = _pick_dtype(dtype, config)
    trained, texts = _tokenizer(tokenizer_dir, trained_with, held_out, config)
    files = tokenizer_files(tokenizer_dir, max_length=config.max_position_embeddings)
    model = skeleton(config)
    read = (
        read_average(checkpoint)
        if ema
        else read_weights(checkpoint, verified=verified, trust=trust)
    )
    weights = as_stored(fit(read, model, checkpoint), chosen)
    stored = next(iter(weights.values())).dtype
    dtype_name = str(stored).removeprefix("torch.")
    parameters = sum(tensor.numel() for tensor in weights.values())
    claim = _Claim.of(trained, texts, config, weights, dtype_name) if prove else None
    config, architecture = _finish_config(config, weights, stored, files["tokenizer.json"])
    files["README.md"] = render_card(
        facts,
        parameters=parameters,
        architecture=architecture,
        trained_as=type(model).__name__,
        dtype=dtype_name,
        vocab_size=config.vocab_size,
        special=trained.eos_token,
    )
    mark = {"format_version": 1, "run": facts.name, "step": facts.step, "tokenizer": trained.sha256}
    tensors, size, proof = _put(target, weights, config, files, mark, claim)
    return Exported(target, parameters, tensors, dtype_name, size, architecture, proof)


def _put(
    target: Path,
    weights: Weights,
    config: PretrainedConfig,
    files: dict[str, str],
    mark: dict[str, object],
    claim: _Claim | None,
) -> tuple[int, int, Proof | None]:
    """Write, check and prove beside `target`, then rename. Returns tensors, bytes and the proof."""
    staging = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        tensors, proof = _write(staging, weights, config, files, mark, claim)
        size = sum(path.stat().st_size for path in files_below(staging))
        _publish(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise MachineError(
                f"{target} could not be written.", got=str(error), fix="--to another disk"
            ) from error
        raise
    return tensors, size, proof


def _write(
    staging: Path,
    weights: Weights,
    config: PretrainedConfig,
    files: dict[str, str],
    mark: dict[str, object],
    claim: _Claim | None,
) -> tuple[int, Proof | None]:
    """Everything the folder holds, its list of digests last; returns how many tensors were read back equal, and the
    proof. Empties `weights`."""
    staging.mkdir(parents=True)
    write_weights(weights, staging)
    _write_configs(config, staging)
    for name, text in files.items():
        write_atomic(staging / name, text)
    tensors = check_written(weights, staging)
    weights.clear()  # the process that follows has the model in memory too
    proof = None
    if claim is not None:
        proof = prove_folder(
            staging, claim.trained, claim.texts, claim.ids, claim.logits, claim.dtype
        )
    names = [path.relative_to(staging).as_posix() for path in files_below(staging)]
    write_json(staging / MARK, {**mark, "files": seal_files(staging, names)})  # fsync and sha256
    return tensors, proof


def _tokenizer(
    folder: Path, trained_with: Path | None, held_out: Sequence[str], config: PretrainedConfig
) -> tuple[TextTokenizer, list[str]]:
    """The tokenizer that the model was trained with, and the texts to compare it on."""
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"There is no tokenizer in {folder}.",
            got="tokenizer.json is missing",
            fix="--tokenizer FOLDER",
        )
    trained = load_tokenizer(trained_with or folder)
    texts = probe_texts(trained, held_out)
    if trained_with is not None and trained_with != folder:
        refuse_other_tokenizer(load_tokenizer(folder), trained, texts, trained_with)
    if trained.length > config.vocab_size or trained.eos_id != config.eos_token_id:
        raise ConfigError(
            "The tokenizer does not belong to the model.",
            got=f"{trained_with or folder}: {trained.length:,} tokens, end of text {trained.eos_id}; "
            f"the model: {config.vocab_size:,} rows, end of text {config.eos_token_id}",
            fix="--tokenizer FOLDER, the one that the model was trained with",
        )
    return trained, texts


def _read_config(checkpoint: Path) -> PretrainedConfig:
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint} has no config.json: it does not say what its weights are."
        )
    try:
        return AutoConfig.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint / 'config.json'} cannot be read.", got=str(error)
        ) from error


def _pick_dtype(name: str | None, config: PretrainedConfig) -> torch.dtype | None:
    """The type to store: the asked one, or the one in config.json (partitions are fp32 whatever was trained)."""
    if name is None:
        trained = getattr(config, "dtype", None)
        return DTYPES.get(trained) if isinstance(trained, str) else trained
    if name not in DTYPES:
        raise ConfigError(
            f"{name!r} is not a type to store weights in.",
            fix="--dtype float32, bfloat16 or float16",
        )
    return DTYPES[name]


def _finish_config(
    config: PretrainedConfig, weights: Weights, dtype: torch.dtype, tokenizer_json: str
) -> tuple[PretrainedConfig, str]:
    """What plain transformers needs to know, as Llama where the tokenizer asks for it (`weights` then get more).

    A text starts with EOS, as every document in training did.
    """
    if model_type_for(config.model_type, tokenizer_json) != config.model_type:
        config = as_llama(config, weights)
    architecture = type(skeleton(config)).__name__
    config.architectures = [architecture]
    config.dtype = dtype
    config.use_cache = True
    if config.bos_token_id is None:
        config.bos_token_id = config.eos_token_id
    return config, architecture


def _write_configs(config: PretrainedConfig, folder: Path) -> None:
    config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # What transformers 4 reads; without rope_theta it would take 10,000. Version 5 reads the keys beside these.
    values |= {
        "rope_theta": values["rope_parameters"]["rope_theta"],
        "torch_dtype": values["dtype"],
    }
    write_json(folder / "config.json", values)
    eos = config.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else eos
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=eos, pad_token_id=pad
    ).save_pretrained(folder)


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
