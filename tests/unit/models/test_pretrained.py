"""A model folder that is damaged, of another kind or incomplete is refused by its fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.tiny_model import tiny_model
from safetensors.torch import load_file, save_file

from wikillm.core.errors import CheckpointError, ConfigError, MachineError, WikiLLMError
from wikillm.models.pretrained import load_weights, reading


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change(name: str, value: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))

    return act


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


KINDS: dict[str, tuple[Callable[[Path], object], type[WikiLLMError], str]] = {
    "empty weights": (cut(0), CheckpointError, "model.safetensors: 0 bytes"),
    "weights cut in the header": (cut(300), CheckpointError, "model.safetensors: 300 bytes"),
    "weights cut in a tensor": (cut(50_000), CheckpointError, "model.safetensors: 50,000 bytes"),
    "weights of noise": (
        lambda folder: (folder / "model.safetensors").write_bytes(os.urandom(5000)),
        CheckpointError,
        "model.safetensors",
    ),
    "a tensor is missing": (drop_a_tensor, CheckpointError, "missing_keys: model.norm.weight"),
    "another width": (change("hidden_size", 64), CheckpointError, "cannot be loaded"),
    "config of no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        CheckpointError,
        "config.json",
    ),
    "an unknown kind": (change("model_type", "nosuch"), ConfigError, "nosuch"),
    "no config": (lambda folder: (folder / "config.json").unlink(), ConfigError, "not a model"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_incomplete_model_folder_is_refused(kind: str, tmp_path: Path) -> None:
    act, error, said = KINDS[kind]
    tiny_model().save_pretrained(tmp_path)
    act(tmp_path)
    with pytest.raises(error) as caught:
        load_weights(tmp_path, advice="copy it again")
    assert said in str(caught.value) and "copy it again" in str(caught.value), str(caught.value)


def test_a_complete_folder_loads_and_extra_weights_are_refused_with_takes_all(
    tmp_path: Path,
) -> None:
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "extra.weight": tensors["model.norm.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    assert load_weights(tmp_path, advice="").config.hidden_size == 32
    with pytest.raises(CheckpointError, match="unexpected_keys: extra.weight"):
        load_weights(tmp_path, advice="", takes_all=True)


def test_a_failing_disk_is_a_machine_error(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MachineError, match="disk reported an error") as caught:
        reading(tmp_path, fail, advice="")
    assert str(tmp_path) in str(caught.value)
