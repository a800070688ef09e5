"""Opens a standard Hugging Face folder for generation: local files, safetensors, no code from it.

The tokenizer is tokenizer.json as it is: what AutoTokenizer makes of it depends on the model type
and on the version of transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from wikillm.core.errors import ConfigError, MachineError
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer, prompt_tokenizer
from wikillm.models.pretrained import load_weights


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`tokenizer` recognises special tokens in prompts; `text_tokenizer` reads them as text."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    text_tokenizer: TextTokenizer

    @property
    def eos_id(self) -> int:
        return self.text_tokenizer.eos_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Further ids that end a text, of generation_config.json: the end of a chat's turn."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ends = named if isinstance(named, list) else []
        return tuple(int(each) for each in ends if each != self.eos_id)


def is_model_folder(folder: Path) -> bool:
    """Whether the folder has config, tokenizer and weights, as any Hugging Face model."""
    files = ("config.json", "tokenizer.json")
    return all((folder / name).is_file() for name in files) and has_weights(folder)


def has_weights(folder: Path) -> bool:
    files = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in files)


def load_folder(
    folder: Path, *, tokenizer_dir: Path | None = None, device: str = "auto"
) -> LoadedModel:
    """The model in eval mode on `device`, with its tokenizer.

    Args:
        folder: has config.json and safetensors weights.
        tokenizer_dir: where the tokenizer lies; default `folder`.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigError: the folder is not a loadable model, or the device's name is not one.
        CheckpointError: a file in it is damaged.
        DataError: the tokenizer is damaged, or names no end-of-text token.
        MachineError: the device is not there.
    """
    target = pick_device(device)
    tokenizer = prompt_tokenizer(tokenizer_dir or folder)
    text_tokenizer = load_tokenizer(tokenizer_dir or folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing file is an error, not a download
    advice = "name a folder written by `wikillm export`, a run directory or a checkpoint"
    model = load_weights(folder, advice=advice, dtype="auto")
    model.to(target)  # type: ignore[arg-type]  # the stub of a decorated method
    return LoadedModel(model.eval(), tokenizer, text_tokenizer)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU. Raises ConfigError or MachineError for other names."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ConfigError(f"{name!r} is not a device.", fix="--device auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise MachineError(f"There is no device {name}.", got=f"{count} GPUs", fix="--device cpu")
    return device
