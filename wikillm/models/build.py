"""Builds a model with the same initial weights for every ZeRO stage, world size and device.

`build_model` takes the TrainingArguments because they must exist first: they hold Hugging Face's
DeepSpeed configuration, which transformers finds through a weak reference while it builds the
model. Under ZeRO-3 that configuration makes transformers partition every parameter at its creation.
Weights are float32, or the engine's type under ZeRO-3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from wikillm.config.schema import ModelSection
from wikillm.core.errors import CheckpointError, ConfigError, WikiLLMError
from wikillm.core.faults import is_of_the_file
from wikillm.models.init import initialise_weights
from wikillm.models.pretrained import load_weights
from wikillm.models.shape import hf_config


def build_model(
    section: ModelSection, vocab_size: int, args: TrainingArguments, *, eos_id: int, seed: int
) -> PreTrainedModel:
    """A model with fresh weights, or with those of `section.init_from`. (all ranks)

    Args:
        vocab_size: rows of the embedding, padding included (the plan's).
        args: this run's arguments; no others may have been made after them.
        eos_id: the token that ends a document.
        seed: seed of the fresh weights.

    Raises ConfigError or CheckpointError if `init_from` cannot be used.
    """
    _check_order(args)
    if section.init_from is not None:
        model = _load(section, vocab_size, eos_id)
    else:
        model = _create(hf_config(section, vocab_size, eos_id), section, seed)
    # Training needs no KV cache, which only takes memory; export turns it on again.
    model.config.use_cache = False
    return model


def _check_order(args: TrainingArguments) -> None:
    deepspeed_config = getattr(args, "hf_deepspeed_config", None)
    wants_zero3 = deepspeed_config is not None and deepspeed_config.is_zero3()
    has_zero3 = bool(is_deepspeed_zero3_enabled())  # type: ignore[no-untyped-call]
    if wants_zero3 != has_zero3:
        raise WikiLLMError(
            "transformers uses a DeepSpeed configuration that is not this run's.",
            got=f"these arguments: ZeRO-3 {wants_zero3}; transformers: ZeRO-3 {has_zero3}",
            fix="build the model right after its own TrainingArguments, and keep them alive",
        )


def _create(config: PreTrainedConfig, section: ModelSection, seed: int) -> PreTrainedModel:
    # Hugging Face's initial weights depend on the order of modules and on ZeRO-3: they are skipped
    # where that is possible, and overwritten in any case.
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, attn_implementation=section.attn_implementation
        )
    model.tie_weights()
    initialise_weights(model, seed, section.initializer_range, section.final_norm_init)
    return model


def _load(section: ModelSection, vocab_size: int, eos_id: int) -> PreTrainedModel:
    folder = Path(section.init_from or "")
    _check_folder(folder)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_shape(config, section, vocab_size, folder)
    # A Qwen2 model that was exported as Llama, since its tokenizer is not of Qwen2's kind.
    is_exported = config.model_type == "llama" and section.architecture == "qwen2"
    if is_exported:
        config = hf_config(section, vocab_size, eos_id)
    config.eos_token_id = eos_id
    if config.pad_token_id == eos_id:
        config.pad_token_id = None  # else nn.Embedding would keep the end-of-text row untrained
    return load_weights(
        folder,
        advice="copy it again, or save it again with model.save_pretrained(FOLDER)",
        takes_all=True,
        spare=(lambda name: _is_zero_bias(folder, name)) if is_exported else None,
        config=config,
        dtype=torch.float32,
        attn_implementation=section.attn_implementation,
    )


def _check_folder(folder: Path) -> None:
    """Raise ConfigError unless there are safetensors: unpickling other formats can run code."""
    index = folder / "model.safetensors.index.json"
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            "model.init_from is an adapter, not a model.", got=str(folder), fix="merge it first"
        )
    if index.is_file():
        names = shards_of(index)
    else:
        names = {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        pickled = sorted(
            path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth")
        )
        got = f"{folder}: no {', '.join(missing)}" + (
            f"; pickled weights are never read: {pickled[0]}" if pickled else ""
        )
        fix = "save it with model.save_pretrained(FOLDER), which writes safetensors"
        raise ConfigError("model.init_from has no safetensors weights.", got=got, fix=fix)


def _is_zero_bias(folder: Path, name: str) -> bool:
    """Whether this is a bias that Llama has and Qwen2 lacks, and all of its values are 0."""
    if not name.endswith(".self_attn.o_proj.bias"):
        return False
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt", device="cpu") as opened:
            if name in opened.keys():  # noqa: SIM118  not a dict
                return not bool(opened.get_tensor(name).any())
    return False


def shards_of(index: Path) -> set[str]:
    """The files that a weight index names.

    Raises CheckpointError for an unreadable index, or one that names files outside its folder.
    """
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if not is_of_the_file(error):
            raise
        raise CheckpointError(
            "A model folder's weight index cannot be read.", got=f"{index}: {error!r}"
        ) from None
    outside = [name for name in shards if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise CheckpointError(
            "A weight index names files outside its folder.", got=f"{index}: {outside[0]}"
        )
    return shards


def _check_shape(config: Any, section: ModelSection, vocab_size: int, folder: Path) -> None:
    """Raise ConfigError if the folder's config.json has changed since the plan was made."""
    wanted = hf_config(section, vocab_size, eos_id=0).to_dict()
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    keys += ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]
    if config.model_type != "llama":
        keys.insert(0, "model_type")
    wrong = [
        f"{key}: {getattr(config, key)}, planned {wanted[key]}"
        for key in keys
        if getattr(config, key) != wanted[key]
    ]
    if wrong:
        raise ConfigError(
            "The model in model.init_from is not the planned one.",
            got=f"{folder}\n" + "\n".join(wrong),
        )
