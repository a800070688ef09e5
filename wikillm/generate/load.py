"""Load a standard Hugging Face folder for generation: local safetensors, no remote code.

The tokenizer is read from tokenizer.json directly, because AutoTokenizer's result depends on the
model type and on the version of transformers.
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
    """A model and its tokenizers.

    `tokenizer` recognises special tokens in prompts; `text_tokenizer` reads them as text.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    text_tokenizer: TextTokenizer

    @property
    def eos_id(self) -> int:
        return self.text_tokenizer.eos_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Further ids that end a text, from generation_config.json: the end of a chat message."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ends = named if isinstance(named, list) else []
        return tuple(int(end) for end in ends if end != self.eos_id)


def is_model_folder(folder: Path) -> bool:
    """Whether the folder has config, tokenizer and weights, like any Hugging Face model."""
    files = ("config.json", "tokenizer.json")
    return all((folder / name).is_file() for name in files) and has_weights(folder)


def has_weights(folder: Path) -> bool:
    files = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in files)


def load_folder(
    folder: Path, *, tokenizer_dir: Path | None = None, device: str = "auto"
) -> LoadedModel:
    """Load the model in eval mode on `device`, with its tokenizer.

    Args:
        folder: folder with config.json and safetensors weights.
        tokenizer_dir: folder of the tokenizer; default `folder`.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigError: the folder is not a loadable model, or `device` is not the name of a device.
        CheckpointError: a file in the folder is damaged.
        DataError: the tokenizer is damaged, or names no end-of-text token.
        MachineError: this machine does not have the device.
    """
    target = pick_device(device)
    tokenizer = prompt_tokenizer(tokenizer_dir or folder)
    text_tokenizer = load_tokenizer(tokenizer_dir or folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing file is an error, not a download
    advice = "name a folder that `wikillm export` wrote, a run directory or a checkpoint"
    model = load_weights(folder, advice=advice, dtype="auto")
    model.to(target)  # type: ignore[arg-type]  # the stub of a decorated method
    return LoadedModel(model.eval(), tokenizer, text_tokenizer)


def pick_device(name: str) -> torch.device:
    """The named device; `auto` is the first GPU, or the CPU without a GPU.

    Raises ConfigError for a name that is no device, MachineError if this machine lacks the device.
    """
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
        what = f"This machine has no device {name}."
        raise MachineError(what, got=f"{count} GPUs", fix="--device cpu")
    return device
