"""Refuse a DeepSpeed JSON that cannot mean what it says, before a model exists and without
importing DeepSpeed.

Two rings: `check_deepspeed(file)` looks at the file alone (unknown, removed and ineffective keys,
kinds of values, blocks that must be there), `check_deepspeed(file, facts)` also at the run (values
that contradict it, features the hardware lacks). All problems are reported at once, each with
file, line, key, both values and what to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wikillm.config.compatibility import Case, Zero, add_conflicts
from wikillm.config.deepspeed import DeepSpeedFacts, DeepSpeedFile
from wikillm.config.deepspeed_keys import (
    AT_LEAST_ONE,
    AUTO,
    BLOCKS,
    CHOICES,
    CUDA_ONLY,
    FRACTIONS,
    LARGEST,
    MAY_BE_NEGATIVE,
    REMOVED,
    TOP_LEVEL,
    TRACKERS,
    UNEXPLAINED,
    WITHOUT_EFFECT,
    Kind,
)
from wikillm.core.errors import ConfigError, Problems, did_you_mean


def check_deepspeed(file: DeepSpeedFile, facts: DeepSpeedFacts | None = None) -> None:
    """Raise one ConfigError with every problem of `file`, alone or (with `facts`) in this run."""
    problems = Problems(ConfigError)
    _check_keys(file, "", file.json, TOP_LEVEL, problems)
    _check_blocks_present(file, problems)
    _check_zero(file, problems)
    _check_ineffective(file, problems)
    if facts is not None:
        _check_against_run(file, facts, problems)
        _check_hardware(file, facts, problems)
        case = Case(
            facts.train,
            zero=Zero.of(file.json),
            has_deepspeed=True,
            precision=facts.precision,
            has_gpu=facts.has_gpu,
        )
        add_conflicts(case, problems, file=file)
    problems.raise_if_any()


def is_off(value: Any) -> bool:
    """Whether a setting or block asks for nothing: absent, false, 0, 1 for a size, {} or
    {"enabled": false}."""
    if isinstance(value, Mapping):
        return (
            not value
            or value.get("enabled") is False
            or value == {"autotp_size": 0}
            or value == {"autotp_size": 1}
        )
    return value in (None, False, 0, 1) and value is not True


def _path(block: str, key: str) -> str:
    return f"{block}.{key}" if block else key


def _check_keys(
    file: DeepSpeedFile,
    block: str,
    value: Mapping[str, Any],
    known: Mapping[str, Kind],
    problems: Problems,
) -> None:
    for key, item in value.items():
        path = _path(block, key)
        if path in REMOVED:
            problems.add(
                f'DeepSpeed and Hugging Face no longer read "{key}".',
                got=file.where(path),
                fix=REMOVED[path],
            )
        elif key not in known:
            near = did_you_mean(key, known)
            others = [
                place
                for place, keys in {"": TOP_LEVEL, **BLOCKS}.items()
                if key in keys and place != block
            ]
            if not near and others:
                fix = f"move it {'into ' + others[0] if others[0] else 'to the top level'}"
            else:
                fix = f'did you mean "{near}"?' if near else "remove it"
            problems.add(
                f'DeepSpeed knows no key "{key}" {"in " + block if block else "at the top level"}.',
                got=f"{file.where(path)} = {_show(item)}",
                fix=fix,
            )
        else:
            _check_kind(file, path, item, known[key], problems)
            if isinstance(item, Mapping) and path in BLOCKS:
                _check_keys(file, path, item, BLOCKS[path], problems)


def _check_kind(file: DeepSpeedFile, path: str, value: Any, kind: Kind, problems: Problems) -> None:
    if value == "auto":
        if path not in AUTO:
            problems.add(
                f'"auto" has no meaning at {path}.',
                got=file.where(path),
                fix=f"write {kind}, or remove it",
            )
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    right = {
        Kind.BOOL: isinstance(value, bool),
        Kind.INT: is_number and value == int(value),
        Kind.NUMBER: is_number,
        Kind.TEXT: isinstance(value, str),
        Kind.LIST: isinstance(value, list),
        Kind.BLOCK: isinstance(value, Mapping),
        Kind.ANY: True,
    }[kind]
    if value is not None and not right:
        problems.add(
            f"{path} takes {kind}.", got=f"{file.where(path)} = {_show(value)}", fix=f"write {kind}"
        )
    elif is_number:
        _check_range(file, path, value, problems)
    elif isinstance(value, str) and path in CHOICES and value.lower() not in CHOICES[path]:
        names = ", ".join(CHOICES[path])
        problems.add(
            f"{path} is one of {names}.",
            got=f"{file.where(path)} = {_show(value)}",
            fix=f"one of {names}",
        )


def _check_range(file: DeepSpeedFile, path: str, value: float, problems: Problems) -> None:
    """Numbers that DeepSpeed would refuse after the model exists, or that mean nothing."""
    least = 1 if path in AT_LEAST_ONE else 0
    most = LARGEST.get(path)
    is_whole = value % 1 == 0 or path in FRACTIONS or not path.startswith("zero_optimization.")
    is_inside = path in MAY_BE_NEGATIVE or (value >= least and (most is None or value <= most))
    is_divisor = path == "gradient_predivide_factor"
    if is_whole and is_inside and not (is_divisor and value == 0):
        return
    wanted = (
        "a number above 0"
        if is_divisor
        else f"a {'' if path in FRACTIONS else 'whole '}number from {least}"
        + ("" if most is None else f" to {most}")
    )
    problems.add(
        f"{path} takes {wanted}.", got=f"{file.where(path)} = {_show(value)}", fix=f"write {wanted}"
    )


def _check_blocks_present(file: DeepSpeedFile, problems: Problems) -> None:
    for name in ("bf16", "fp16"):
        if not isinstance(file.json.get(name), Mapping) or "enabled" not in file.json[name]:
            problems.add(
                f'The block "{name}" with "enabled" is missing.',
                got=f"{file.path}: without it Hugging Face takes the weights to be float16",
                fix=f'"{name}": {{"enabled": "auto"}}',
            )
    if file.get("bf16.enabled") is True and file.get("fp16.enabled") is True:
        problems.add(
            "bf16 and fp16 are both enabled.",
            got=f"{file.where('bf16.enabled')}, {file.where('fp16.enabled')}",
            fix='"enabled": "auto" in both; train.precision decides',
        )
    if file.json.get("zero_optimization") is None:  # of another kind: `_check_kind` reports it
        problems.add(
            'The block "zero_optimization" is missing.',
            got=str(file.path),
            fix='"zero_optimization": {"stage": 0} is plain data parallelism',
        )


def _check_zero(file: DeepSpeedFile, problems: Problems) -> None:
    zero = file.json.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return
    stage = zero.get("stage")
    if isinstance(stage, bool) or not isinstance(stage, int) or stage not in (0, 1, 2, 3):
        got = f"{file.where('zero_optimization.stage')} = {_show(stage)}"
        problems.add(
            "zero_optimization.stage must be 0, 1, 2 or 3.",
            got=got + ("; accelerate would take 2 and DeepSpeed 0" if stage is None else ""),
            fix='"stage": 2',
        )
        return
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        _check_offload(file, name, lowest, stage, problems)
    if stage != 3:
        for path, feature in CUDA_ONLY.items():
            if not is_off(file.get(path)):
                problems.add(
                    f"{feature} needs ZeRO stage 3.",
                    got=f"{file.where(path)} = {_show(file.get(path))}, stage {stage}",
                    fix='"stage": 3, or remove the key',
                )


def _check_offload(
    file: DeepSpeedFile, name: str, lowest: int, stage: int, problems: Problems
) -> None:
    path = f"zero_optimization.{name}"
    block = file.get(path)
    if not isinstance(block, Mapping):
        return
    device = block.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        problems.add(
            f'{path}.device must be "none", "cpu" or "nvme".',
            got=f"{file.where(path + '.device')} = {_show(device)}",
            fix='"device": "cpu"',
        )
        return
    if device == "none":
        return
    if stage < lowest:
        problems.add(
            f"{name} works from ZeRO stage {lowest} on; at stage {stage} DeepSpeed ignores it.",
            got=f"{file.where(path)}, stage {stage}",
            fix=f'"stage": {max(lowest, 2)}, or remove the block',
        )
    if device == "nvme" and not block.get("nvme_path"):
        problems.add(
            f"{path} goes to NVMe, but nvme_path does not say where.",
            got=file.where(path),
            fix='"nvme_path": a folder on a local NVMe disk of every node',
        )
    if name == "offload_optimizer" and block.get("ratio", 1.0) != 1.0 and stage != 3:
        problems.add(
            "Partial offload (ratio below 1) needs ZeRO stage 3.",
            got=file.where(path + ".ratio"),
            fix="remove it",
        )


def _check_ineffective(file: DeepSpeedFile, problems: Problems) -> None:
    for path, why in WITHOUT_EFFECT.items():
        if not is_off(file.get(path)):
            problems.add(
                f'"{path}" would have no effect here: {why}.', got=file.where(path), fix="remove it"
            )
    for path, instead in TRACKERS.items():
        if not is_off(file.get(path)):
            problems.add(
                f"DeepSpeed's {path} monitor is not used: SwanLab is the tracker, and metrics.jsonl the record of a run.",
                got=file.where(path),
                fix=f"remove the block; {instead}",
            )
    for path, feature in UNEXPLAINED.items():
        if not is_off(file.get(path)):
            problems.add(
                f"{feature} is not supported: its first losses differ from plain ZeRO for reasons not yet found.",
                got=file.where(path),
                fix="remove it",
            )
    if file.json.get("scheduler") is not None:
        kind = file.get("scheduler.type")
        problems.add(
            "A DeepSpeed scheduler would silently replace train.lr_scheduler_type and train.warmup_steps.",
            got=f"{file.where('scheduler')} = {_show(kind)}",
            fix="remove the block; the schedule stays Hugging Face's: "
            "train.lr_scheduler_type=cosine|linear|constant_with_warmup train.warmup_steps=N",
        )
    if file.get("managed_gradient_accumulation") is False:
        problems.add(
            "managed_gradient_accumulation=false would step at every micro-step under Hugging Face's Trainer.",
            got=file.where("managed_gradient_accumulation"),
            fix="remove it",
        )
    optimizer = file.json.get("optimizer")
    if isinstance(optimizer, Mapping) and not optimizer.get("type"):
        problems.add(
            "The optimizer block names no type.",
            got=file.where("optimizer"),
            fix="remove the block",
        )


@dataclass(frozen=True, slots=True)
class Linked:
    """A key that the run decides: its value, and the setting of the run it comes from."""

    value: Any
    setting: str
    because: str = ""


def linked_values(facts: DeepSpeedFacts) -> dict[str, Linked]:
    """Every dotted key that the run decides, in the order of Hugging Face's
    `trainer_config_process`; None: not known."""
    train = facts.train
    micro = facts.micro_batch
    accumulation = facts.accumulation
    world = facts.world_size
    batch = f" ({micro} sequences x {accumulation} micro-steps x {world} ranks)"
    whole = (
        None
        if micro is None or accumulation is None or world is None
        else micro * accumulation * world
    )
    is_bf16, is_fp16 = (
        (facts.precision == kind if facts.precision else None) for kind in ("bf16", "fp16")
    )
    return {
        "train_micro_batch_size_per_gpu": Linked(micro, "train.per_device_train_batch_size"),
        "gradient_accumulation_steps": Linked(
            accumulation, "train.gradient_accumulation_steps", " (or derived)"
        ),
        "train_batch_size": Linked(whole, "train.global_batch_tokens", batch),
        "gradient_clipping": Linked(train.max_grad_norm, "train.max_grad_norm"),
        "bf16.enabled": Linked(is_bf16, "train.precision", f" ({facts.precision})"),
        "fp16.enabled": Linked(is_fp16, "train.precision", f" ({facts.precision})"),
        "optimizer.params.lr": Linked(train.learning_rate, "train.learning_rate"),
        "optimizer.params.betas": Linked(
            [train.adam_beta1, train.adam_beta2], "train.adam_beta1, train.adam_beta2"
        ),
        "optimizer.params.eps": Linked(train.adam_epsilon, "train.adam_epsilon"),
        "optimizer.params.weight_decay": Linked(train.weight_decay, "train.weight_decay"),
    }


def _check_against_run(file: DeepSpeedFile, facts: DeepSpeedFacts, problems: Problems) -> None:
    for path, linked in linked_values(facts).items():
        found = file.get(path)
        if found not in (None, "auto") and linked.value is not None and found != linked.value:
            problems.add(
                f"{path} contradicts the run.",
                got=f"{file.where(path)} = {_show(found)}, "
                f"but the run says {_show(linked.value)}{linked.because}: {linked.setting}",
                fix=f'"auto" in the JSON (the run decides), or change {linked.setting}',
            )
    kind, wanted = file.get("optimizer.type"), facts.train.optimizer
    if str(kind).lower() == "muon" or (kind is not None and wanted == "muon"):
        problems.add(
            "A Muon run makes its optimizer from train.*, so that norms and biases are not decayed.",
            got=f"{file.where('optimizer')} = {_show(kind)}, train.optimizer={wanted}",
            fix="remove the block; train.optimizer=muon train.max_grad_norm=0",
        )
    hpz = file.get("zero_optimization.zero_hpz_partition_size", 1)
    if isinstance(hpz, int) and hpz > 1 and facts.world_size is not None and facts.world_size % hpz:
        problems.add(
            "zero_hpz_partition_size must divide the number of ranks.",
            got=f"{file.where('zero_optimization.zero_hpz_partition_size')} = {hpz}, {facts.world_size} ranks",
            fix=f'"auto" takes the ranks of a node ({facts.local_world_size})',
        )


def _check_hardware(file: DeepSpeedFile, facts: DeepSpeedFacts, problems: Problems) -> None:
    if facts.has_gpu in (True, None):
        return
    for path, feature in CUDA_ONLY.items():
        if not is_off(file.get(path)):
            problems.add(
                f"{feature} has no CPU kernels, and this machine has no GPU.",
                got=f"{file.where(path)} = {_show(file.get(path))}",
                fix="--deepspeed zero3",
            )


def _show(value: Any) -> str:
    """A value for a message, on one short line."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
