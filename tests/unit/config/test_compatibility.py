"""Every rule of `compatibility` refuses its case, and compatible settings break no rule."""

from __future__ import annotations

from typing import Any

import pytest

from wikillm.config.compatibility import RULES, Case, Zero, conflicts, refuse_conflicts
from wikillm.config.load import load
from wikillm.config.schema import ModelSection
from wikillm.config.schema_data import DataSection, MixtureSource
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError

MUON: dict[str, Any] = {"optimizer": "muon", "max_grad_norm": 0.0}
FLASH = {"attn_implementation": "flash_attention_2"}
MIXTURE = (MixtureSource(name="a", weight=1, path="a.jsonl"),)


def case(train: dict[str, Any], model: dict[str, Any] | None = None, **known: Any) -> Case:
    data = DataSection(**known.pop("data", {}))
    return Case(TrainSection(**train), ModelSection(**(model or {})), data, **known)


# A case that breaks one rule alone, part of its sentence, and a change of what is known that lifts
# it.
CASES: list[tuple[Case, str]] = [
    (case({"optimizer": "muon"}), "clipping"),
    (case(MUON, precision="fp16"), "not supported in fp16"),
    (case(MUON, zero=Zero(2, offload_optimizer=True)), "work with offload_optimizer"),
    (case(MUON, zero=Zero(3, offload_param=True)), "work with offload_param"),
    (case(MUON, zero=Zero(3, zero_quantized_gradients=True)), "zero_quantized_gradients"),
    (
        case(MUON | {"compile": "elementwise"}, zero=Zero(1), has_gpu=False),
        "DeepSpeed's Muon on a CPU",
    ),
    (case({"compile": "layers"}, zero=Zero(3)), "train.compile=layers does not work with ZeRO-3"),
    (case({}, precision="fp16", has_gpu=False), "fp16 does not train on a CPU"),
    (case({}, FLASH, has_gpu=False), "{0} does not train on a CPU"),
    (case({"document_mask": "on", "compile": "layers"}, FLASH), "recompile the layers"),
    (case({"sequence_parallel_size": 2}, {"attn_implementation": "eager"}), "Sequence parallelism"),
    (case({}, data={"mixture": MIXTURE, "store": "stores/a"}), "has its own store"),
    (case({}, data={"mixture": MIXTURE, "drop_list": "drops"}), "drop list"),
    (case({}, data={"mixture": MIXTURE, "streaming": "on"}), "while its stores are being built"),
]


@pytest.mark.parametrize(("broken", "sentence"), CASES, ids=[text for _, text in CASES])
def test_each_rule_refuses_its_case(broken: Case, sentence: str) -> None:
    assert [sentence in rule.sentence for rule in conflicts(broken)] == [True]
    with pytest.raises(ConfigError) as caught:
        refuse_conflicts(broken)
    assert caught.value.got and caught.value.fix and "{" not in caught.value.what


def test_every_rule_has_a_case() -> None:
    assert [rule for broken, _ in CASES for rule in conflicts(broken)] == list(RULES)


@pytest.mark.parametrize(
    "fine",
    [
        case({}),
        case(MUON, zero=Zero(3), precision="bf16", has_gpu=False),
        case(MUON | {"compile": "layers"}, zero=Zero(2), has_gpu=True),
        case({"compile": "layers", "ema_decay": 0.9}, zero=Zero(2)),
        case({"ema_decay": 0.9}, zero=Zero(3)),
        case({"compile": "elementwise"}, zero=Zero(3)),
        case({}, FLASH, has_gpu=True),
        case({}, precision="bf16", has_gpu=False),
        case({}, data={"mixture": MIXTURE, "streaming": "auto"}),
    ],
)
def test_compatible_or_unknown_settings_break_no_rule(fine: Case) -> None:
    assert conflicts(fine) == []


def test_a_conflict_names_the_values_and_their_places() -> None:
    with pytest.raises(ConfigError) as caught:
        load("demo", ["data.path=a.jsonl", "train.optimizer=muon", "--fp16"])
    message = str(caught.value)
    assert "train.optimizer=muon, train.max_grad_norm=1 (default)" in message
    assert "train.precision=fp16 (--fp16)" in message
