"""Write the Hugging Face folder: stage it next to the target, check it, prove it, then rename it.

    model.safetensors (shards above 5 GB)  config.json  generation_config.json
    tokenizer.json  tokenizer_config.json  README.md (model card)  loss.svg
    wikillm_export.json (run and step; size and sha256 of every file)

Plain transformers loads the folder; nothing in it needs WikiLLM. Before the rename, a process
without WikiLLM opens the folder and must compute the training tokenizer's ids and the trained
model's logits (`prove`). A Qwen2 model with a tokenizer of another kind is written as Llama (see
`tokenizer_files`). An existing folder is replaced only if it is an earlier export without other
files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from wikillm.checkpoints.manifest import seal_files
from wikillm.core.errors import CheckpointError, ConfigError, MachineError
from wikillm.core.files import STAGING_SUFFIX, files_below, write_atomic, write_json
from wikillm.data.tokenizer.chat_template import check_chat_template
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.export.card import CardContent, card_files
from wikillm.export.compare import refuse_other_tokenizer
from wikillm.export.probe_texts import probe_ids, probe_texts
from wikillm.export.prove import Proof, prove_folder
from wikillm.export.run_records import trained_tokenizer
from wikillm.export.target_folder import MARK, check_target, replace_target
from wikillm.export.tokenizer_files import model_type_for, tokenizer_files
from wikillm.export.weights import (
    Weights,
    as_llama,
    as_stored,
    check_written,
    dtype_name,
    fit,
    read_average,
    read_weights,
    skeleton,
    trained_logits,
    write_weights,
)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES = _DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export. `tensors`: how many tensors were read back and matched bit for bit."""

    folder: Path
    parameters: int
    tensors: int
    dtype: str
    size: int  # bytes of all files
    architecture: str
    proof: Proof | None  # None if no proof was requested


def export_model(
    checkpoint: Path,
    target: Path,
    *,
    trust: bool = False,
    tokenizer_dir: Path,
    content: CardContent,
    dtype: str | None = None,
    verified: bool = False,
    ema: bool = False,
    held_out: Sequence[str] = (),
    prove: bool = True,
) -> Exported:
    """Export a complete checkpoint, with whole weights or ZeRO partitions, to `target`.

    Args:
        trust: allow the checkpoint's pickles to run code (--trust-checkpoint).
        tokenizer_dir: folder with at least tokenizer.json, for the exported folder. If the run
            still has the tokenizer of the training, both must give the same ids.
        dtype: float32, bfloat16 or float16; None for the type that the model was trained in.
        verified: the caller has just checked the checkpoint's manifest.
        ema: export the moving average of the weights (train.ema_decay) instead of the weights.
        held_out: more texts on which the tokenizers are compared.
        prove: compare the folder with the checkpoint in a process without WikiLLM.

    Raises:
        CheckpointError: a damaged checkpoint, a wrong config.json, or other logits in the folder.
        ConfigError: unknown dtype, missing or wrong tokenizer, or `target` holds other files.
        DataError: the exported tokenizer gives other ids than the training tokenizer.
        MachineError: disk full or not writable, or plain transformers cannot open the folder.
    """
    check_target(target)
    config = _read_config(checkpoint)
    chosen = _pick_dtype(dtype, config)
    trained, texts = _tokenizer(tokenizer_dir, trained_tokenizer(checkpoint), held_out, config)
    ends = _ends(trained, content.chat_template)
    positions = config.max_position_embeddings
    files = tokenizer_files(tokenizer_dir, max_length=positions, template=content.chat_template)
    # Read the weights under the checkpoint's parameter names, and convert their dtype.
    model = skeleton(config)
    read = read_average(checkpoint) if ema else read_weights(checkpoint, verified, trust)
    weights = as_stored(fit(read, model, checkpoint), chosen)
    stored = next(iter(weights.values())).dtype
    parameters = sum(tensor.numel() for tensor in weights.values())
    # Compute the logits for the proof before `_finish_config` may convert the model to Llama.
    ids = probe_ids(trained, positions)
    logits = trained_logits(config, weights, ids) if prove else None
    config = _finish_config(config, weights, stored, files["tokenizer.json"])
    files |= card_files(content, config, parameters, type(model).__name__, trained.eos_token)
    # Write all files next to the target, the list of digests last; then rename the folder.
    with _staged(target) as staging:
        tensors = _write(staging, weights, config, files, ends)
        weights.clear()  # frees memory: the process of the proof loads the model again
        proof = None
        if logits is not None:
            proof = prove_folder(staging, trained, texts, ids, logits, stored)
        size = _seal(staging, content, trained)
        replace_target(target, staging)
    architecture = str((config.architectures or [""])[0])
    return Exported(target, parameters, tensors, dtype_name(stored), size, architecture, proof)


def _seal(folder: Path, content: CardContent, trained: TextTokenizer) -> int:
    """Write wikillm_export.json (size and sha256 of each file), the mark of an export.

    Returns the size of the folder in bytes.
    """
    mark = {
        "format_version": 1,
        "run": content.name,
        "step": content.step,
        "tokenizer": trained.sha256,
    }
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    write_json(folder / MARK, {**mark, "files": seal_files(folder, names)})
    return sum(path.stat().st_size for path in files_below(folder))


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A staging folder next to `target`, which is removed if the export fails."""
    staging = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            what = f"{target} could not be written."
            fix = "free space, or --to a writable folder on another disk"
            raise MachineError(what, got=str(error), fix=fix) from error
        raise


def _write(
    folder: Path,
    weights: Weights,
    config: PretrainedConfig,
    files: dict[str, str],
    ends: int | list[int],
) -> int:
    """Write all files except the list of digests. Returns the number of tensors read back
    equal."""
    folder.mkdir(parents=True)
    write_weights(weights, folder)
    _write_configs(config, folder, ends)
    for name, text in files.items():
        write_atomic(folder / name, text)
    return check_written(weights, folder)


def _ends(trained: TextTokenizer, chat_template: str) -> int | list[int]:
    """EOS ids for generation: the end of a document and, with a chat template, of an answer.

    Raises ConfigError for an unusable template.
    """
    if not chat_template:
        return trained.eos_id
    vocabulary = trained.backend.get_vocab(with_added_tokens=True)
    end = vocabulary[check_chat_template(chat_template, vocabulary, trained.eos_token)]
    return trained.eos_id if end == trained.eos_id else [end, trained.eos_id]


def _tokenizer(
    folder: Path, trained_with: Path | None, held_out: Sequence[str], config: PretrainedConfig
) -> tuple[TextTokenizer, list[str]]:
    """(the tokenizer that the model was trained with, the texts to compare it on)."""
    if not (folder / "tokenizer.json").is_file():
        what = f"There is no tokenizer in {folder}."
        raise ConfigError(what, got="tokenizer.json is missing", fix="--tokenizer FOLDER")
    trained = load_tokenizer(trained_with or folder)
    texts = probe_texts(trained, held_out)
    if trained_with is not None and trained_with != folder:
        refuse_other_tokenizer(load_tokenizer(folder), trained, texts, trained_with)
    if trained.length > config.vocab_size or trained.eos_id != config.eos_token_id:
        raise ConfigError(
            "The tokenizer does not belong to the model.",
            got=f"{trained_with or folder}: {trained.length:,} tokens, "
            f"eos_token_id {trained.eos_id}; the model: {config.vocab_size:,} embedding rows, "
            f"eos_token_id {config.eos_token_id}",
            fix="--tokenizer FOLDER, with the tokenizer that the model was trained with",
        )
    return trained, texts


def _read_config(checkpoint: Path) -> PretrainedConfig:
    file = checkpoint / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{checkpoint} has no config.json, so its model is unknown.")
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        return AutoConfig.from_pretrained(checkpoint, **options)
    except (OSError, ValueError, RecursionError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read.", got=str(error)) from error


def _pick_dtype(name: str | None, config: PretrainedConfig) -> torch.dtype | None:
    """The requested dtype, else that of config.json: ZeRO partitions are always fp32."""
    if name is None:
        trained = getattr(config, "dtype", None)
        return DTYPES.get(trained) if isinstance(trained, str) else trained
    if name not in DTYPES:
        what = f"Weights cannot be stored as {name!r}."
        raise ConfigError(what, fix="--dtype float32, bfloat16 or float16")
    return DTYPES[name]


def _finish_config(
    config: PretrainedConfig, weights: Weights, dtype: torch.dtype, tokenizer_json: str
) -> PretrainedConfig:
    """Complete the configuration for plain transformers. If the tokenizer requires it, convert the
    model to Llama, which adds biases to `weights`.

    bos_token_id becomes EOS, because every training document started after an EOS.
    """
    if model_type_for(config.model_type, tokenizer_json) != config.model_type:
        config = as_llama(config, weights)
    config.architectures = [type(skeleton(config)).__name__]
    config.dtype = dtype
    config.use_cache = True
    if config.bos_token_id is None:
        config.bos_token_id = config.eos_token_id
    return config


def _write_configs(config: PretrainedConfig, folder: Path, ends: int | list[int]) -> None:
    config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # transformers 4 reads these two keys; without rope_theta it would assume 10,000.
    theta = values["rope_parameters"]["rope_theta"]
    values |= {"rope_theta": theta, "torch_dtype": values["dtype"]}
    write_json(folder / "config.json", values)
    pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    generation = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends,
        pad_token_id=pad,
        # Without this limit, generate stops after 20 tokens. The prompt may use the other half.
        max_new_tokens=max(1, config.max_position_embeddings // 2),
    )
    generation.save_pretrained(folder)
