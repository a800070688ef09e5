"""No variable of accelerate, Hugging Face or torch changes a run against its configuration."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from wikillm.config.environment_variables import (
    FAMILIES,
    HARMLESS,
    RunNeeds,
    clean_environment,
    find_conflicts,
)
from wikillm.core.errors import ConfigError

VARIABLE = re.compile(
    r"""["']((?:ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM)_[A-Z0-9_]+)["']"""
)


def clean(environ: dict[str, str], precision: str = "auto") -> dict[str, str]:
    clean_environment(environ, RunNeeds(precision))
    return environ


REFUSED = {
    "ACCELERATE_MIXED_PRECISION": ("bf16", "train.precision=bf16"),
    "ACCELERATE_DYNAMO_BACKEND": ("INDUCTOR", "train.compile=layers"),
    "ACCELERATE_USE_DEEPSPEED": ("true", "--deepspeed zero2"),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("ds.json", "--deepspeed ds.json"),
    "ACCELERATE_USE_FSDP": ("1", "--deepspeed zero3"),
    "ACCELERATE_USE_MEGATRON_LM": ("true", "--deepspeed zero3"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("true", "train.sequence_parallel_size"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "train.gradient_accumulation_steps=4"),
    "ACCELERATE_GRADIENT_CLIPPING": ("0.5", "train.max_grad_norm=0.5"),
    "ACCELERATE_TORCH_DEVICE": ("cuda", "CUDA_VISIBLE_DEVICES"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradicting_variable_is_refused_by_name(name: str) -> None:
    value, fix = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        clean({name: value})
    assert f"{name}={value}" in str(caught.value) and fix in str(caught.value)


def test_the_defaults_of_accelerate_launch_are_removed() -> None:
    neutral = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_USE_CPU": "True",
        "FSDP_VERSION": "2",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    kept = {"ACCELERATE_LOG_LEVEL": "info", "PATH": "/bin"}
    assert clean({**neutral, **kept}) == kept
    assert clean({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16") == {}


def test_all_conflicts_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems") as caught:
        clean({"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "fp8"})
    message = str(caught.value)
    assert "ACCELERATE_USE_FSDP" in message and "ACCELERATE_MIXED_PRECISION" in message


def test_variables_of_torch_are_refused_only_where_they_have_an_effect() -> None:
    environ = {"TORCHDYNAMO_DISABLE": "1", "NVIDIA_TF32_OVERRIDE": "1"}
    assert find_conflicts(environ, RunNeeds("fp32", compiles=False, has_gpu=False)) == {}
    found = find_conflicts(environ, RunNeeds("fp32", compiles=True, has_gpu=True))
    assert list(found) == ["NVIDIA_TF32_OVERRIDE", "TORCHDYNAMO_DISABLE"]
    assert clean({"TORCHDYNAMO_DISABLE": "1"}) == {"TORCHDYNAMO_DISABLE": "1"}, (
        "variables of torch are never removed"
    )


def test_every_variable_that_the_installed_libraries_read_is_refused_removed_or_harmless() -> None:
    """A new version of accelerate with a new variable needs no change here: the whole family is
    removed."""
    read: set[str] = set()
    for package in ("accelerate", "transformers"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for pattern in ("*.py", "utils/*.py", "integrations/*.py"):
            for path in folder.glob(pattern):
                read |= set(VARIABLE.findall(path.read_text()))
    assert len(read) > 40, "the pattern no longer finds them"
    for name in read:
        environ = {name: "7"}
        try:
            clean(environ)
        except ConfigError:
            continue
        assert not environ or name in HARMLESS, name
    assert all(name.startswith(FAMILIES) for name in HARMLESS)
