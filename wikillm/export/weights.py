"""Weights out of a checkpoint, and safetensors that hold exactly these weights.

A checkpoint holds what Hugging Face wrote (`model.safetensors`, whole or in shards), or, where ZeRO-3 did not
gather, only DeepSpeed's `global_stepN/` with fp32 partitions; these are put together again on the CPU. The
partitions are pickles, so they are opened only in a folder whose manifest has verified. Tied weights are stored
once, under the name of the embedding.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from wikillm.checkpoints.layout import AVERAGE
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError, Problems
from wikillm.models.unpickle import only_known_classes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # a file of the export holds at most this much, as on the hubs

Weights = dict[str, torch.Tensor]


def read_weights(checkpoint: Path, *, verified: bool, trust: bool = False) -> Weights:
    """All parameters by name, on the CPU, in the type they were stored in (fp32 out of ZeRO partitions).

    Args:
        checkpoint: a complete checkpoint folder.
        verified: the caller has just checked its manifest; otherwise that is done before a pickle is opened.
        trust: run the code that its pickles may hold (--trust-checkpoint).

    Raises:
        CheckpointError: damaged, or without weights.
    """
    files = weight_files(checkpoint)
    if files:
        return {name: tensor for file in files for name, tensor in read_safetensors(file)}
    tag = _zero_folder(checkpoint)
    if tag is None:
        raise CheckpointError(
            f"{checkpoint} holds no weights.",
            got=f"neither {SINGLE} nor a global_stepN folder with DeepSpeed's optimizer states",
            fix="name another checkpoint of the run, or run the training again",
        )
    if not verified:
        verify(checkpoint)
    return _consolidate(checkpoint, tag, trust=trust)


def read_average(checkpoint: Path) -> Weights:
    """The moving average of the weights in a checkpoint, in float32. Raises CheckpointError where there is none."""
    files = sorted((checkpoint / AVERAGE).glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{checkpoint} holds no moving average of the weights.",
            got=f"no {AVERAGE}/ in it",
            fix="leave out --ema; or train with train.ema_decay=0.999 and take a checkpoint after train.ema_start",
        )
    return {name: tensor for file in files for name, tensor in read_safetensors(file)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, by its index where it has one; empty when there are none."""
    if (folder / INDEX).is_file():
        try:
            names = set(
                json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{folder / INDEX} cannot be read.", got=repr(error)) from None
        return [folder / Path(name).name for name in sorted(names)]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def read_safetensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) one after the other. Raises CheckpointError when the file is not what it should be."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118  not a dict
                yield name, opened.get_tensor(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read.", got=str(error)) from None
    except Exception as error:  # SafetensorError derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"{file} is damaged.", got=str(error)) from None


def _zero_folder(checkpoint: Path) -> str | None:
    """Name of the one folder with ZeRO partitions; never what a `latest` file claims."""
    found = [path.parent.name for path in checkpoint.glob("global_step*/*_optim_states.pt")]
    return max(found, key=lambda name: int(name.removeprefix("global_step"))) if found else None


def _consolidate(checkpoint: Path, tag: str, *, trust: bool) -> Weights:
    """fp32 parameters from ZeRO-2 or ZeRO-3 partitions of any world size (pickles: verify before)."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    talk = io.StringIO()  # DeepSpeed prints a dozen lines about its own files
    try:
        only_numbers = only_known_classes(checkpoint / tag, trust=trust)
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk), only_numbers:
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=tag))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"DeepSpeed's partitions in {checkpoint / tag} cannot be put together.",
            got=f"{type(error).__name__}: {error}",
        ) from error


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def fit(weights: Weights, model: PreTrainedModel, checkpoint: Path) -> Weights:
    """`weights` without the tied copies, checked against the model's names and shapes.

    Raises:
        CheckpointError: every weight that is missing, unknown, misshapen, or tied and yet different.
    """
    problems = Problems(CheckpointError)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            if name not in tied:
                problems.add(f"{checkpoint} lacks the weight {name}.")
        elif weights[name].shape != tensor.shape:
            problems.add(
                f"The weight {name} in {checkpoint} does not fit its config.json.",
                got=f"{list(weights[name].shape)} instead of {list(tensor.shape)}",
            )
        elif name in tied and not torch.equal(
            weights[name], weights.get(tied[name], weights[name])
        ):
            problems.add(
                f"{name} and {tied[name]} differ in {checkpoint}, though config.json ties them."
            )
    for name in sorted(set(weights) - set(expected)):
        problems.add(f"{checkpoint} holds a weight the model does not have: {name}.")
    problems.raise_if_any()
    return {name: weights[name] for name in expected if name in weights and name not in tied}


def as_stored(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """`weights` in the type they will have on disk, each with memory of its own; empties `weights` on the way.

    Partitions come as views into one flat tensor, which safetensors refuses to write.
    """
    stored = {}
    for name in list(weights):
        tensor = weights.pop(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        shares_memory = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        stored[name] = tensor.clone() if shares_memory else tensor.contiguous()
    return stored


def as_llama(config: PretrainedConfig, weights: Weights) -> PretrainedConfig:
    """A Qwen2 model as a Llama model that computes the same, bit for bit; adds to `weights` in place.

    The two differ in one thing: Llama's attention_bias gives the output projection a bias too, which is 0 here.
    """
    if config.model_type != "qwen2" or getattr(config, "use_sliding_window", False):
        raise ValueError(f"not a plain Qwen2 model: {config.model_type}")
    for name in [name for name in weights if name.endswith(".self_attn.o_proj.weight")]:
        weight = weights[name]
        weights[name.removesuffix("weight") + "bias"] = torch.zeros(
            weight.shape[0], dtype=weight.dtype
        )
    shared = {name: getattr(config, name) for name in _OF_LLAMA}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LlamaConfig(**shared, head_dim=head_dim, attention_bias=True, mlp_bias=False)


_OF_LLAMA = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings", "hidden_act", "rope_parameters",
    "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def trained_logits(config: PretrainedConfig, weights: Weights, ids: Sequence[int]) -> torch.Tensor:
    """(1, len(ids), vocabulary) in float32: what `weights` compute in the type they have. No copy of them is made."""
    model = skeleton(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # Of the buffers only the rotary frequencies exist, and they are in no checkpoint.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([list(ids)])).logits.float().contiguous()


def write_weights(weights: Weights, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """`model.safetensors`, or shards of at most `shard_bytes` with an index."""
    save_torch_state_dict(weights, folder, max_shard_size=shard_bytes, metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    for file in weight_files(folder):
        file.chmod(
            0o666 & ~umask
        )  # safetensors writes for its owner alone; the other files are for all who may


def check_written(weights: Weights, folder: Path) -> int:
    """Read the files again and compare every tensor bit by bit; returns how many there are.

    Raises:
        CheckpointError: what was written is not what was meant (a full or failing disk, a memory error).
    """
    seen = set()
    for file in weight_files(folder):
        for name, tensor in read_safetensors(file):
            meant = weights.get(name)
            if (
                meant is None
                or meant.dtype != tensor.dtype
                or not torch.equal(_bits(meant), _bits(tensor))
            ):
                raise CheckpointError(
                    f"The weight {name} reads back differently from {file}.", fix="check the disk"
                )
            seen.add(name)
    if seen != set(weights):
        raise CheckpointError(
            f"{folder} lacks weights: {', '.join(sorted(set(weights) - seen)[:5])}."
        )
    return len(seen)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As bytes: equal bits also where NaN differs from itself."""
    return tensor.contiguous().view(torch.uint8)
