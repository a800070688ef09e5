"""Refuse a DeepSpeed JSON that cannot work, before a model exists and without importing DeepSpeed.

`check_deepspeed(file)` checks the file alone: unknown, removed and ineffective keys, types of
values, missing blocks. `check_deepspeed(file, run)` also compares the file with the run: values
that contradict the run, features that the hardware lacks, combinations that do not work. All
problems are reported at once, with line, key, value and fix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wikillm.config.compatibility import Case, Zero, add_conflicts
from wikillm.config.deepspeed import DeepSpeedFile, DeepSpeedRun
from wikillm.config.deepspeed_keys import (
    AUTO,
    BLOCKS,
    CHOICES,
    INSTEAD,
    NOT_USED,
    RANGES,
    TOP_LEVEL,
    ZERO3_CUDA_FEATURES,
    Kind,
)
from wikillm.core.errors import ConfigError, Problems, did_you_mean


def check_deepspeed(file: DeepSpeedFile, run: DeepSpeedRun | None = None) -> None:
    """Raise one ConfigError that lists every problem of the file.

    With `run`, it also lists where the file contradicts the run.
    """
    problems = _FileProblems(file)
    _check_keys(problems, "", file.json, TOP_LEVEL)
    _check_blocks_present(problems)
    _check_zero(problems)
    _check_ineffective(problems)
    if run is not None:
        _check_against_run(problems, run)
        case = Case(
            run.train,
            zero=Zero.of(file.json),
            precision=run.precision,
            has_gpu=run.has_gpu,
        )
        add_conflicts(case, problems, file=file)
    problems.raise_if_any()


def is_off(value: Any) -> bool:
    """Whether a setting or block has no effect: absent, false, 0, 1 as a size, {} or disabled."""
    if isinstance(value, Mapping):
        is_autotp_off = value in ({"autotp_size": 0}, {"autotp_size": 1})  # of tensor_parallel
        return not value or value.get("enabled") is False or is_autotp_off
    return value in (None, False, 0, 1) and value is not True  # True == 1 in Python


class _FileProblems(Problems):
    """The problems of a DeepSpeed JSON."""

    def __init__(self, file: DeepSpeedFile) -> None:
        super().__init__(ConfigError)
        self.file = file

    def at(self, path: str, what: str, fix: str, note: str = "") -> None:
        """Add a problem with the line and the value of a key."""
        value = self.file.get(path)
        shown = "" if isinstance(value, Mapping) else f" = {_show(value)}"
        self.add(what, got=f"{self.file.where(path)}{shown}{note}", fix=fix)


def _check_keys(
    problems: _FileProblems, block: str, value: Mapping[str, Any], known: Mapping[str, Kind]
) -> None:
    for key, item in value.items():
        path = f"{block}.{key}" if block else key
        if key not in known:
            where = f"in {block}" if block else "at the top level"
            fix = INSTEAD.get(path) or _fix_unknown(block, key, known)
            problems.at(path, f'"{key}" is an unknown key {where}.', fix)
        else:
            _check_kind(problems, path, item, known[key])
            if isinstance(item, Mapping) and path in BLOCKS:
                _check_keys(problems, path, item, BLOCKS[path])


def _fix_unknown(block: str, key: str, known: Mapping[str, Kind]) -> str:
    if near := did_you_mean(key, known):
        return f'did you mean "{near}"?'
    for place, keys in {"": TOP_LEVEL, **BLOCKS}.items():
        if key in keys and place != block:
            return f"move it into {place}" if place else "move it to the top level"
    return "remove it"


def _check_kind(problems: _FileProblems, path: str, value: Any, kind: Kind) -> None:
    if value == "auto":
        if path not in AUTO:
            problems.at(path, f'"auto" has no meaning at {path}.', f"write {kind}, or remove it")
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and abs(value) < 2**63  # DeepSpeed stores 64 bits
    is_right = {
        Kind.BOOL: isinstance(value, bool),
        Kind.INT: is_number and value == int(value),
        Kind.NUMBER: is_number,
        Kind.TEXT: isinstance(value, str),
        Kind.LIST: isinstance(value, list),
        Kind.BLOCK: isinstance(value, Mapping),
        Kind.ANY: True,
    }[kind]
    if value is not None and not is_right:
        problems.at(path, f"{path} must be {kind}.", f"write {kind}")
    elif is_number:
        _check_range(problems, path, value)
    elif isinstance(value, str) and path in CHOICES and value.lower() not in CHOICES[path]:
        names = ", ".join(CHOICES[path])
        problems.at(path, f"{path} must be one of {names}.", f"one of {names}")


def _check_range(problems: _FileProblems, path: str, value: float) -> None:
    """Refuse numbers that DeepSpeed would refuse only after the model exists, or that make no
    sense."""
    smallest, largest = RANGES.get(path, (0, math.inf))
    if not smallest <= value <= largest:
        wanted = f"from {smallest} " + ("on" if largest == math.inf else f"to {largest}")
        problems.at(path, f"{path} must be {wanted}.", f"write a number {wanted}")


def _check_blocks_present(problems: _FileProblems) -> None:
    file = problems.file
    for name in ("bf16", "fp16"):
        if not isinstance(file.json.get(name), Mapping) or "enabled" not in file.json[name]:
            problems.add(
                f'The block "{name}" with "enabled" is missing.',
                got=f"{file.path}: without the block, Hugging Face assumes float16 weights",
                fix=f'"{name}": {{"enabled": "auto"}}',
            )
    if file.get("bf16.enabled") is True and file.get("fp16.enabled") is True:
        problems.add(
            "bf16 and fp16 are both enabled.",
            got=f"{file.where('bf16.enabled')}, {file.where('fp16.enabled')}",
            fix='"enabled": "auto" in both; train.precision decides',
        )
    if file.json.get("zero_optimization") is None:  # `_check_kind` reports a wrong type
        problems.add(
            'The block "zero_optimization" is missing.',
            got=str(file.path),
            fix='"zero_optimization": {"stage": 0} is plain data parallelism',
        )


def _check_zero(problems: _FileProblems) -> None:
    file = problems.file
    zero = file.json.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return
    stage = zero.get("stage")
    if isinstance(stage, bool) or not isinstance(stage, int) or stage not in (0, 1, 2, 3):
        note = "; accelerate would take 2 and DeepSpeed 0" if stage is None else ""
        what = "zero_optimization.stage must be 0, 1, 2 or 3."
        problems.at("zero_optimization.stage", what, '"stage": 2', note)
        return
    if stage and zero.get("reduce_scatter") is not False:
        for path in ("prescale_gradients", "gradient_predivide_factor"):
            if not is_off(file.get(path)):
                what = f"{path} does not work with reduce_scatter, which ZeRO uses by default."
                problems.at(path, what, 'remove it, or "reduce_scatter": false')
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        _check_offload(problems, name, lowest, stage)
    if stage != 3:
        for path, feature in ZERO3_CUDA_FEATURES.items():
            if not is_off(file.get(path)):
                what = f"{feature} needs ZeRO stage 3."
                problems.at(path, what, '"stage": 3, or remove the key', f", stage {stage}")


def _check_offload(problems: _FileProblems, name: str, lowest: int, stage: int) -> None:
    path = f"zero_optimization.{name}"
    block = problems.file.get(path)
    if not isinstance(block, Mapping):
        return
    device = block.get("device", "none")
    unsupported = {
        "device": device not in ("none", "cpu"),
        "ratio": device == "cpu" and block.get("ratio", 1.0) != 1.0,
        "super_offload": device == "cpu" and bool(block.get("super_offload")),
    }
    for key in [key for key, is_wrong in unsupported.items() if is_wrong]:
        what = f"Checkpoints cannot hold this {name}: part of its state is not in host memory."
        fix = f'"{name}": {{"device": "cpu"}}; with more ranks, each needs less memory'
        problems.at(f"{path}.{key}", what, fix)
    if device == "cpu" and stage < lowest:
        problems.at(
            path,
            f"{name} works from ZeRO stage {lowest} on; at stage {stage} DeepSpeed ignores it.",
            f'"stage": {max(lowest, 2)}, or remove the block',
        )


def _check_ineffective(problems: _FileProblems) -> None:
    file = problems.file
    for path, why in NOT_USED.items():
        value = file.get(path)
        # accelerate looks for a scheduler, even an empty one.
        if not is_off(value) or (path == "scheduler" and value is not None):
            problems.at(path, f'"{path}" is not supported: {why}.', "remove it")
    for path, why in (
        ("managed_gradient_accumulation", "would update the weights at every micro-step"),
        ("zero_optimization.compute_grad_norm", "needs a run without clipping, and logs no norm"),
    ):
        if file.get(path) is False:
            problems.at(path, f"{path}=false {why}.", "remove it")
    optimizer = file.json.get("optimizer")
    # Without a block the run builds its own optimizer. `_check_against_run` refuses Muon's block.
    kind = str(optimizer.get("type") or "none") if isinstance(optimizer, Mapping) else "AdamW"
    if kind.lower() not in ("adam", "adamw", "muon"):
        what = f"The optimizer block names {kind}, but only Adam and AdamW can be checkpointed."
        problems.at("optimizer", what, "remove the block")
    # A block that agrees with the run is left out later. Its other settings would have no effect.
    for name, value in (file.get("optimizer.params") or {}).items():
        path = f"optimizer.params.{name}"
        if path not in LINKED and not is_off(value) and (name, value) not in ADAMW:
            problems.at(path, f"{path} has no effect: the run builds its own AdamW.", "remove it")


LINKED = frozenset(f"optimizer.params.{name}" for name in ("lr", "betas", "eps", "weight_decay"))
"""Parameters of the optimizer block that `linked_values` compares with the run."""
ADAMW = (("adam_w_mode", True), ("bias_correction", True), ("torch_adam", True))
"""(parameter, value) that the run's AdamW has in any case."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A key of the JSON whose value the run sets, and the run's setting that it comes from."""

    value: Any
    setting: str
    because: str = ""


def linked_values(run: DeepSpeedRun) -> dict[str, Linked]:
    """Every dotted key whose value the run sets; the value is None while it is unknown.

    The order follows Hugging Face's `trainer_config_process`.
    """
    train = run.train
    micro = run.micro_batch
    accumulation = run.accumulation
    world = run.world_size
    whole = None
    if micro is not None and accumulation is not None and world is not None:
        whole = micro * accumulation * world
    product = f" ({micro} sequences x {accumulation} micro-steps x {world} ranks)"

    def enabled(kind: str) -> Linked:
        value = run.precision == kind if run.precision else None
        return Linked(value, "train.precision", f" ({run.precision})")

    betas = [train.adam_beta1, train.adam_beta2]
    return {
        "train_micro_batch_size_per_gpu": Linked(micro, "train.per_device_train_batch_size"),
        "gradient_accumulation_steps": Linked(
            accumulation, "train.gradient_accumulation_steps", " (or derived)"
        ),
        "train_batch_size": Linked(whole, "train.global_batch_tokens", product),
        "gradient_clipping": Linked(train.max_grad_norm, "train.max_grad_norm"),
        "bf16.enabled": enabled("bf16"),
        "fp16.enabled": enabled("fp16"),
        "optimizer.params.lr": Linked(train.learning_rate, "train.learning_rate"),
        "optimizer.params.betas": Linked(betas, "train.adam_beta1, train.adam_beta2"),
        "optimizer.params.eps": Linked(train.adam_epsilon, "train.adam_epsilon"),
        "optimizer.params.weight_decay": Linked(train.weight_decay, "train.weight_decay"),
    }


def _check_against_run(problems: _FileProblems, run: DeepSpeedRun) -> None:
    file = problems.file
    # Values that the run sets.
    for path, linked in linked_values(run).items():
        found = file.get(path)
        if found not in (None, "auto") and linked.value is not None and found != linked.value:
            expected = f"the run has {_show(linked.value)}{linked.because}: {linked.setting}"
            fix = f'"auto" in the JSON (the run decides), or change {linked.setting}'
            problems.at(path, f"{path} contradicts the run.", fix, f", but {expected}")
    # Muon, which no block may replace.
    kind = file.get("optimizer.type")
    optimizer = run.train.optimizer
    if str(kind).lower() == "muon" or (kind is not None and optimizer == "muon"):
        problems.at(
            "optimizer.type",
            "A Muon run builds its own optimizer from train.*, without weight decay on norms and "
            "biases; a block in the JSON would replace it.",
            "remove the block; train.optimizer=muon train.max_grad_norm=0",
            f", train.optimizer={optimizer}",
        )
    # hpZ's groups of ranks.
    path = "zero_optimization.zero_hpz_partition_size"
    hpz = file.get(path, 1)
    if isinstance(hpz, int) and hpz > 1 and run.world_size is not None and run.world_size % hpz:
        problems.at(
            path,
            "zero_hpz_partition_size must divide the number of ranks.",
            f'"auto", which is the number of ranks per node ({run.local_world_size})',
            f", {run.world_size} ranks",
        )
    # Features that need a GPU.
    if run.has_gpu is False:
        for path, feature in ZERO3_CUDA_FEATURES.items():
            if not is_off(file.get(path)):
                what = f"{feature} has no CPU kernels, and there is no GPU."
                problems.at(path, what, "--deepspeed zero3")


def _show(value: Any) -> str:
    """A value for a message, on one short line."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
