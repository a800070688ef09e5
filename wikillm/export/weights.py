"""Read the weights of a checkpoint, and write them as safetensors without a change.

A checkpoint has Hugging Face's `model.safetensors`, whole or in shards. If ZeRO-3 did not gather
the weights, it has only DeepSpeed's `global_stepN/` with fp32 partitions, which are consolidated on
the CPU. Partitions are pickles, so they are opened only after the folder's manifest was verified.
Tied weights are stored once, under the name of the embedding.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from wikillm.checkpoints.layout import AVERAGE
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError, ConfigError, Problems
from wikillm.core.faults import is_of_the_file
from wikillm.models.build import shards_of
from wikillm.models.unpickle import only_known_classes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # largest file of an export, as is usual on the hubs

Weights = dict[str, torch.Tensor]


def read_weights(checkpoint: Path, verified: bool, trust: bool = False) -> Weights:
    """All parameters by name, on the CPU, in their stored type (fp32 for ZeRO partitions).

    Args:
        checkpoint: a complete checkpoint folder.
        verified: the caller has just checked the manifest. Otherwise the manifest is checked before
            a pickle is opened.
        trust: allow the checkpoint's pickles to run code (--trust-checkpoint).

    Raises CheckpointError for a damaged checkpoint, or a checkpoint without weights.
    """
    files = weight_files(checkpoint)
    if files:
        return {name: tensor for file in files for name, tensor in read_safetensors(file)}
    tag = _zero_folder(checkpoint)
    if tag is None:
        raise CheckpointError(
            f"{checkpoint} has no weights.",
            got=f"neither {SINGLE} nor a global_stepN folder with DeepSpeed's optimizer states",
            fix="use another checkpoint of the run, or train again",
        )
    if not verified:
        verify(checkpoint)
    return _consolidate(checkpoint, tag, trust=trust)


def read_average(checkpoint: Path) -> Weights:
    """The moving average of the weights, in float32. Raises CheckpointError if there is none."""
    files = sorted((checkpoint / AVERAGE).glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{checkpoint} has no moving average of the weights.",
            got=f"it has no folder {AVERAGE}/",
            fix="leave out --ema; or train with train.ema_decay=0.999 and export a checkpoint "
            "after train.ema_start",
        )
    return {name: tensor for file in files for name, tensor in read_safetensors(file)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: those in its index, or the single file."""
    index = folder / INDEX
    if index.is_file():
        return [folder / name for name in sorted(shards_of(index))]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def read_safetensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for each tensor. Raises CheckpointError if the file cannot be read."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118  not a dict
                yield name, opened.get_tensor(name)
    except (OSError, ValueError) as error:
        if not is_of_the_file(error):
            raise
        raise CheckpointError(f"{file} cannot be read.", got=str(error)) from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged.", got=str(error)) from None


def _zero_folder(checkpoint: Path) -> str | None:
    """Name of the newest folder with ZeRO partitions. DeepSpeed's file `latest` is not trusted."""
    found = [path.parent.name for path in checkpoint.glob("global_step*/*_optim_states.pt")]
    return max(found, key=lambda name: int(name.removeprefix("global_step"))) if found else None


def _consolidate(checkpoint: Path, tag: str, *, trust: bool) -> Weights:
    """fp32 parameters from ZeRO partitions of any world size. Opens pickles, which the caller must
    have verified."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    output = io.StringIO()  # DeepSpeed prints a dozen lines about its own files
    try:
        only_numbers = only_known_classes(checkpoint / tag, trust=trust)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), only_numbers:
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=tag))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"DeepSpeed's partitions in {checkpoint / tag} cannot be consolidated.",
            got=f"{type(error).__name__}: {error}",
        ) from error


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device, for names and shapes without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def fit(weights: Weights, model: PreTrainedModel, checkpoint: Path) -> Weights:
    """Check `weights` against the model's names and shapes. Returns them without tied copies.

    Raises CheckpointError that lists every weight that is missing, unknown, of a wrong shape, or
    different from the weight that it is tied to.
    """
    problems = Problems(CheckpointError)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            if name not in tied:
                problems.add(f"The weight {name} is missing in {checkpoint}.")
        elif weights[name].shape != tensor.shape:
            problems.add(
                f"The weight {name} in {checkpoint} does not fit its config.json.",
                got=f"{list(weights[name].shape)} instead of {list(tensor.shape)}",
            )
        elif name in tied and not torch.equal(weights[name], weights.get(tied[name], tensor)):
            pair = f"{name} and {tied[name]}"
            problems.add(f"{pair} differ in {checkpoint}, though config.json ties them.")
    for name in sorted(set(weights) - set(expected)):
        problems.add(f"{checkpoint} has a weight that the model does not have: {name}.")
    problems.raise_if_any()
    return {name: weights[name] for name in expected if name in weights and name not in tied}


def as_stored(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """Convert `weights` to their stored type, each with its own memory. Empties `weights`.

    Consolidated partitions are views into one flat tensor, which safetensors refuses to write.

    Raises CheckpointError for NaN and infinity, ConfigError for a value too large for `dtype`.
    """
    stored = {}
    for name in list(weights):
        tensor = weights.pop(name)
        if not tensor.isfinite().all():
            what = f"The weight {name} holds NaN or infinity."
            raise CheckpointError(what, fix="export an earlier checkpoint")
        if dtype is not None and tensor.is_floating_point():
            largest = float(tensor.abs().max())
            tensor = tensor.to(dtype)
            if not tensor.isfinite().all():
                raise ConfigError(
                    f"The weight {name} is too large for {dtype_name(dtype)}.",
                    got=f"a value of {largest:.4g}; {dtype_name(dtype)} ends at "
                    f"{torch.finfo(dtype).max:.4g}",
                    fix="--dtype bfloat16 or float32",
                )
        shares_memory = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        stored[name] = tensor.clone() if shares_memory else tensor.contiguous()
    return stored


def as_llama(config: PretrainedConfig, weights: Weights) -> PretrainedConfig:
    """Convert a Qwen2 model to a Llama model with bit-equal outputs.

    The only difference is that Llama's attention_bias includes the output projection. Its bias, 0,
    is added to `weights`.
    """
    if config.model_type != "qwen2" or getattr(config, "use_sliding_window", False):
        raise ValueError(f"not a plain Qwen2 model: {config.model_type}")
    for name in [name for name in weights if name.endswith(".self_attn.o_proj.weight")]:
        weight = weights[name]
        bias = torch.zeros(weight.shape[0], dtype=weight.dtype)
        weights[name.removesuffix("weight") + "bias"] = bias
    shared = {name: getattr(config, name) for name in _OF_LLAMA}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LlamaConfig(**shared, head_dim=head_dim, attention_bias=True, mlp_bias=False)


_OF_LLAMA = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "attention_dropout", "rope_parameters"),
    *("max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def trained_logits(config: PretrainedConfig, weights: Weights, ids: Sequence[int]) -> torch.Tensor:
    """Logits (1, len(ids), vocabulary) in float32, computed in the type of `weights` without a copy
    of them."""
    model = skeleton(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # The rotary frequencies are the only buffers, and checkpoints do not contain them.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([list(ids)])).logits.float().contiguous()


def write_weights(weights: Weights, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with an index."""
    save_torch_state_dict(weights, folder, max_shard_size=shard_bytes, metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    for file in weight_files(folder):
        file.chmod(0o666 & ~umask)  # safetensors makes files readable by their owner only


def check_written(weights: Weights, folder: Path) -> int:
    """Read the files again and compare every tensor bit by bit. Returns the number of tensors.

    Raises CheckpointError if a tensor differs, as after a disk or memory error.
    """

    def bits(tensor: torch.Tensor) -> torch.Tensor:  # NaN equals itself only as bits
        return tensor.contiguous().view(torch.uint8)

    seen = set()
    for file in weight_files(folder):
        for name, tensor in read_safetensors(file):
            meant = weights.get(name)
            is_equal = meant is not None and meant.dtype == tensor.dtype
            if not is_equal or not torch.equal(bits(weights[name]), bits(tensor)):
                what = f"The weight {name} reads back differently from {file}."
                raise CheckpointError(what, fix="check the disk")
            seen.add(name)
    if missing := sorted(set(weights) - seen):
        raise CheckpointError(f"Weights are missing in {folder}: {', '.join(missing[:5])}.")
    return len(seen)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
