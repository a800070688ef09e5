"""The tables of DeepSpeed keys hold exactly the keys that the installed DeepSpeed reads."""

from __future__ import annotations

import os
from collections import UserDict
from typing import Any

import pytest

from wikillm.config.deepspeed_keys import AUTO, BLOCKS, TOP_LEVEL, Kind


class Recorder(UserDict[str, Any], dict[str, Any]):  # type: ignore[misc]
    """A dict that remembers which keys were asked for: DeepSpeed's own reading is the list of what
    it knows."""

    def __init__(self, **values: Any) -> None:
        self.asked: set[str] = set()
        super().__init__(**values)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __copy__(self) -> Recorder:
        return self


@pytest.fixture(scope="module")
def recorded() -> Recorder:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    inner = {
        "optimizer": Recorder(type="AdamW", params={}),
        "torch_autocast": Recorder(enabled=False),
        "data_types": Recorder(),
        "checkpoint": Recorder(),
        "timers": Recorder(throughput={}),
        "flops_profiler": Recorder(),
        "aio": Recorder(),
    }
    config = Recorder(
        train_micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=1,
        zero_optimization={},
        **inner,
    )
    DeepSpeedConfig(config)
    return config


def test_the_top_level_keys_are_those_that_deepspeed_reads(recorded: Recorder) -> None:
    from deepspeed.runtime import config as deepspeed_config

    unknown = recorded.asked - set(TOP_LEVEL)
    assert unknown == set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | {"bfloat16"}
    # sequence_parallel_size is asked for only inside an initialised process group
    assert set(TOP_LEVEL) - recorded.asked == {"sequence_parallel_size"}, (
        "we know these keys, and DeepSpeed does not read them"
    )


@pytest.mark.parametrize(
    "block", ["optimizer", "torch_autocast", "data_types", "checkpoint", "flops_profiler", "aio"]
)
def test_the_keys_of_hand_parsed_blocks_are_those_that_deepspeed_reads(
    recorded: Recorder, block: str
) -> None:
    asked = recorded.data[block].asked
    assert asked - set(BLOCKS[block]) == set()
    unread = {"optimizer": set(), "checkpoint": {"checkpoint_serialization"}}.get(block, set())
    assert set(BLOCKS[block]) - asked <= unread | {"dtype", "lower_precision_safe_modules"}


def models() -> dict[str, Any]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "compile": CompileConfig,
    }


def test_the_keys_of_pydantic_blocks_are_the_fields_of_deepspeeds_models() -> None:
    found = models()
    by_hand = {"optimizer", "torch_autocast", "data_types", "checkpoint", "flops_profiler", "aio"}
    assert set(found) | by_hand | {"timers", "optimizer.params"} == set(BLOCKS)
    for path, model in found.items():
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        unknown = {
            key
            for key in set(fields) - set(BLOCKS[path])
            if not (fields[key].json_schema_extra or {}).get("deprecated")
        }
        assert unknown <= {"legacy_stage1"}, f"{path}: fields we would call unknown"
        assert set(BLOCKS[path]) - set(fields) == set(), f"{path}: keys DeepSpeed would refuse"
        for key, kind in BLOCKS[path].items():
            is_bool = "bool" in str(fields[key].annotation)
            assert is_bool == (kind is Kind.BOOL), f"{path}.{key}: {fields[key].annotation}"


def test_auto_is_allowed_only_at_known_keys() -> None:
    for path in AUTO:
        block, _, key = path.rpartition(".")
        known = {
            "": TOP_LEVEL,
            "optimizer.params": dict.fromkeys(("lr", "betas", "eps", "weight_decay")),
            **BLOCKS,
        }
        assert key in known[block], path
