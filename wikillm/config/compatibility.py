"""Settings that do not work together, for the configuration checks, the planner and the engine.

Each caller describes the known part of the run as a `Case`. A rule does not apply while a value it
needs is unknown, so it fires at the first caller that knows all its values. Rules on divisors and
lengths are in `checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wikillm.config.deepspeed import DeepSpeedFile, lookup
from wikillm.config.origin import Origin
from wikillm.config.precision import Precision
from wikillm.config.resolved import typed_form
from wikillm.config.schema import ModelSection
from wikillm.config.schema_data import DataSection
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError, Problems

NO_GPU = "gpu"
"""Used in place of a setting, in rules about machines without a GPU."""
ZERO = "zero_optimization."


@dataclass(frozen=True, slots=True)
class Zero:
    """The features of a DeepSpeed JSON that exclude some settings of a run."""

    stage: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False
    zero_quantized_gradients: bool = False

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> Zero:
        """Read the features from a JSON that may be invalid: DeepSpeed's default replaces an
        invalid value."""

        def offloads(name: str) -> bool:
            return str(lookup(json, f"{ZERO}{name}.device", "none")) != "none"

        stage = lookup(json, f"{ZERO}stage")
        return cls(
            stage=stage if isinstance(stage, int) else 0,
            offload_optimizer=offloads("offload_optimizer"),
            offload_param=offloads("offload_param"),
            zero_quantized_gradients=bool(lookup(json, f"{ZERO}zero_quantized_gradients")),
        )


@dataclass(frozen=True, slots=True)
class Case:
    """The known part of a run. An unknown field keeps its default, to which no rule applies."""

    train: TrainSection
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    zero: Zero | None = None
    precision: Precision | None = None
    has_gpu: bool | None = None

    @property
    def lacks_gpu(self) -> bool:
        return self.has_gpu is False

    @property
    def is_muon(self) -> bool:
        return self.train.optimizer == "muon"

    @property
    def uses_flash(self) -> bool:
        return self.model.attn_implementation == "flash_attention_2"


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings that do not work together. In `sentence`, `{0}` is the value of `settings[0]`."""

    settings: tuple[str, ...]
    when: Callable[[Case], bool]
    sentence: str
    fix: str


def _excludes_muon(feature: str) -> Rule:
    """The rule that Muon does not work with this feature of zero_optimization."""
    return Rule(
        ("train.optimizer", f"{ZERO}{feature}"),
        lambda case: case.is_muon and getattr(case.zero, feature, False),
        f"Muon does not work with {feature}.",
        "--deepspeed zero1, zero2 or zero3; or train.optimizer=adamw train.max_grad_norm=1",
    )


_SDPA = "model.attn_implementation=sdpa"

RULES: tuple[Rule, ...] = (
    Rule(
        ("train.optimizer", "train.max_grad_norm"),
        lambda case: case.is_muon and case.train.max_grad_norm > 0,
        "Muon does not work with gradient clipping: DeepSpeed would clip Muon's orthogonal update, "
        "whose norm depends on its shape and not on outliers.",
        "train.max_grad_norm=0",
    ),
    Rule(
        ("train.optimizer", "train.precision"),
        lambda case: case.is_muon and case.precision == "fp16",
        "Muon is not supported in fp16: its momentum would also be fp16, which was never tested.",
        "train.precision=bf16 (or fp32), or train.optimizer=adamw",
    ),
    *map(_excludes_muon, ("offload_optimizer", "offload_param", "zero_quantized_gradients")),
    Rule(
        ("train.optimizer", "train.compile", NO_GPU),
        lambda case: (
            case.is_muon
            and case.zero is not None
            and case.lacks_gpu
            and case.train.compile != "off"
        ),
        "train.compile={1} does not work with DeepSpeed's Muon on a CPU, "
        "which disables compilation.",
        "train.compile=off, or leave out --deepspeed",
    ),
    Rule(
        ("train.compile", f"{ZERO}stage"),
        lambda case: (
            case.train.compile == "layers" and case.zero is not None and case.zero.stage == 3
        ),
        "train.compile=layers does not work with ZeRO-3, which gathers weights inside the layers.",
        "train.compile=elementwise, or --deepspeed zero2 where the weights fit",
    ),
    Rule(
        ("train.precision", NO_GPU),
        lambda case: case.precision == "fp16" and case.lacks_gpu,
        "fp16 does not train on a CPU.",
        "train.precision=fp32, or train.precision=bf16",
    ),
    Rule(
        ("model.attn_implementation", NO_GPU),
        lambda case: case.uses_flash and case.lacks_gpu,
        "{0} does not train on a CPU.",
        _SDPA,
    ),
    Rule(
        ("train.document_mask", "model.attn_implementation", "train.compile"),
        lambda case: (
            case.train.document_mask == "on" and case.train.compile == "layers" and case.uses_flash
        ),
        "With a document mask, each new number of documents in a batch would recompile the layers "
        "under flash attention.",
        f"train.compile=off, or {_SDPA}",
    ),
    Rule(
        ("train.sequence_parallel_size", "model.attn_implementation"),
        lambda case: (
            case.train.sequence_parallel_size > 1 and case.model.attn_implementation == "eager"
        ),
        "Sequence parallelism supports sdpa and flash_attention_2, not {1}.",
        _SDPA,
    ),
    Rule(
        ("data.mixture", "data.store"),
        lambda case: bool(case.data.mixture) and case.data.store is not None,
        "Each source of data.mixture has its own store, so data.store cannot be set.",
        "leave data.store out, or set a store per source: {name: ..., weight: ..., store: ...}",
    ),
    Rule(
        ("data.mixture", "data.drop_list"),
        lambda case: bool(case.data.mixture) and case.data.drop_list is not None,
        "A drop list belongs to the sources of one store, and data.mixture has several.",
        "build the store with `wikillm prepare data.drop_list=FILE`, and name it in data.mixture",
    ),
    Rule(
        ("data.mixture", "data.streaming"),
        lambda case: bool(case.data.mixture) and case.data.streaming == "on",
        "A mixture cannot be trained on while its stores are being built.",
        "data.streaming=auto or off: the stores are built first, as by `wikillm prepare`",
    ),
)


def conflicts(case: Case) -> list[Rule]:
    """The rules that this run breaks."""
    return [rule for rule in RULES if rule.when(case)]


def add_conflicts(
    case: Case,
    problems: Problems,
    origins: Mapping[str, Origin] | None = None,
    file: DeepSpeedFile | None = None,
) -> None:
    """Add each conflict to `problems`, with the values and the places where they were set."""
    for rule in conflicts(case):
        places = [_place(key, case, origins or {}, file) for key in rule.settings]
        values = [_value(key, case) for key in rule.settings]
        problems.add(rule.sentence.format(*values), got=", ".join(places), fix=rule.fix)


def refuse_conflicts(case: Case) -> None:
    """Raises one ConfigError with every conflict."""
    problems = Problems(ConfigError)
    add_conflicts(case, problems)
    problems.raise_if_any()


def _value(key: str, case: Case) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(case, section, None), name, None)


def _place(key: str, case: Case, origins: Mapping[str, Origin], file: DeepSpeedFile | None) -> str:
    if key == NO_GPU:
        return "there is no GPU"
    if key.startswith(ZERO):
        return key if file is None else file.where(key)
    if key == "data.mixture":
        return origins[key].where if key in origins else key
    value = _value(key, case)
    shown = f"{key}={typed_form(value)}"
    if key == "train.precision" and value == "auto":
        return f"{shown}, which is {case.precision} here"
    origin = origins.get(key)
    if origin is None or origin.where == shown:
        return shown
    return f"{shown} ({origin.where or 'default'})"
