"""Replace every "auto" in a DeepSpeed JSON with the run's value, and record each decision as a
line.

The result is saved as `RUN/ds_config.resolved.json` and passed to Hugging Face as a dict, in which
Hugging Face finds nothing to fill and no conflict.

The optimizer stays Hugging Face's AdamW, also under offload. A block of AdamW in the JSON is left
out if it agrees with the run: DeepSpeed would step the schedule twice and get all parameters as one
flat list, so weight decay would apply to norms and biases too. With offload on a GPU, accelerate
converts this AdamW with its parameter groups to DeepSpeed's CPU Adam. Without a GPU, torch's AdamW
gives bit-equal losses and needs no 3-minute build of the CPU Adam op.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from wikillm.config.deepspeed import DeepSpeedFile, DeepSpeedRun, lookup
from wikillm.config.deepspeed_check import check_deepspeed, is_off, linked_values


@dataclass(frozen=True, slots=True)
class ResolvedDeepSpeed:
    """A DeepSpeed JSON without "auto". `notes` has one line per decision, in order."""

    json: dict[str, Any]
    notes: tuple[str, ...]


def resolve_deepspeed(file: DeepSpeedFile, run: DeepSpeedRun) -> ResolvedDeepSpeed:
    """Check `file` against the run, and replace each "auto". All fields of `run` must be known.

    Raises ConfigError.
    """
    assert None not in (run.micro_batch, run.accumulation, run.world_size), run
    assert None not in (run.local_world_size, run.precision, run.has_gpu), run
    # An invalid file is refused before any value is filled in.
    check_deepspeed(file, run)
    config = copy.deepcopy(dict(file.json))
    notes: list[str] = []
    if file.is_shipped and file.asked_for not in (file.path.stem, file.path.name):
        notes.append(f"{file.asked_for} does not exist; using the shipped {file.path}")
    _drop_nulls(config)
    _fill_linked(config, run, notes)
    _fill_zero(config["zero_optimization"], run, notes)
    _place_optimizer(config, run, notes)
    _place_muon(config["zero_optimization"], run, notes)
    _set_quietly(config, run, notes)
    return ResolvedDeepSpeed(config, tuple(notes))


def _drop_nulls(block: dict[str, Any]) -> None:
    """Remove keys that are null. Null means DeepSpeed's default, but parts of DeepSpeed fail on
    it."""
    for key in [key for key, value in block.items() if value is None]:
        del block[key]
    for value in block.values():
        if isinstance(value, dict):
            _drop_nulls(value)


def _fill_linked(config: dict[str, Any], run: DeepSpeedRun, notes: list[str]) -> None:
    filled: list[str] = []
    for path, linked in linked_values(run).items():
        if path.startswith("optimizer."):  # the block is left out
            continue
        *parents, key = path.split(".")
        block = config
        for parent in parents:
            block = block[parent]
        if block.get(key, "auto") == "auto":
            block[key] = linked.value
            filled.append(f"{path}={linked.value}")
    if filled:
        notes.append("from the run: " + ", ".join(filled))


def _fill_zero(zero: dict[str, Any], run: DeepSpeedRun, notes: list[str]) -> None:
    """Fill the "auto" values of zero_optimization.

    The formulas with the hidden size are those of transformers 5.23
    (`HfTrainerDeepSpeedConfig.trainer_config_finalize`).
    """
    h = run.hidden_size
    hpz = "zero_hpz_partition_size"
    gather = "stage3_gather_16bit_weights_on_model_save"
    values = {
        "reduce_bucket_size": h * h,
        "stage3_prefetch_bucket_size": int(0.9 * h * h),
        "stage3_param_persistence_threshold": 10 * h,
        hpz: run.local_world_size,
        gather: zero["stage"] == 3,
    }
    filled = {key: value for key, value in values.items() if zero.get(key) == "auto"}
    zero.update(filled)
    if filled:
        texts = ", ".join(f"{key}={value}" for key, value in filled.items())
        notes.append(f"from hidden_size {h}, ranks and stage: {texts}")
    if hpz in filled:
        notes.append(f"{hpz}={filled[hpz]}: each node keeps a copy of the weights")
    if not is_off(zero.get(hpz)) and run.world_size == run.local_world_size:
        notes.append("hpZ costs memory, and on one node it saves no traffic between nodes")
    if zero["stage"] == 3 and not zero.get(gather):
        notes.append(
            f"{gather} is false: checkpoints have no gathered weights; export reads the ZeRO shards"
        )


def _place_optimizer(config: dict[str, Any], run: DeepSpeedRun, notes: list[str]) -> None:
    """Decide which implementation of Adam runs, and on which device."""
    zero = config["zero_optimization"]
    if config.pop("optimizer", None) is not None:
        note = "its values are the run's, whose AdamW exempts norms and biases from weight decay"
        notes.append(f"the optimizer block is left out: {note}")
    for name in ("offload_optimizer", "offload_param"):
        offload = zero.get(name)
        if offload and not run.has_gpu and offload.get("pin_memory", True):
            offload["pin_memory"] = False
            notes.append(f"{name}.pin_memory=false: pinned memory is of no use without a GPU")
    offloads = lookup(zero, "offload_optimizer.device", "none") != "none"
    # Hugging Face sets this too. It is safe: AdamW is on DeepSpeed's list of tested optimizers.
    config["zero_allow_untested_optimizer"] = True
    if not offloads:
        return
    force = config.setdefault("zero_force_ds_cpu_optimizer", run.has_gpu)
    if force:
        adam = "DeepSpeed's CPU Adam (built once, in about 3 minutes)"
    else:
        adam = "torch's AdamW on the CPU, which needs no build"
    notes.append(
        f"optimizer offload: {adam}, with Hugging Face's groups (norms and biases do not decay)"
    )


def _place_muon(zero: dict[str, Any], run: DeepSpeedRun, notes: list[str]) -> None:
    """Newton-Schulz needs complete gradients, so ZeRO-3 must all-reduce them; otherwise DeepSpeed
    raises."""
    if run.train.optimizer == "muon" and zero["stage"] == 3:
        zero["reduce_scatter"] = False
        notes.append(
            "reduce_scatter=false: Muon needs complete gradients at ZeRO-3 (twice the traffic)"
        )


def _set_quietly(config: dict[str, Any], run: DeepSpeedRun, notes: list[str]) -> None:
    """Disable features that cost time or hide NaN, unless the file sets them."""
    if run.precision == "bf16" and config["bf16"].setdefault("check_grad_overflow", False):
        notes.append(
            "bf16.check_grad_overflow is true: steps with an overflow are skipped, and every step "
            "synchronises the device"
        )
    throughput = config.setdefault("timers", {}).setdefault("throughput", {})
    if "enabled" not in throughput:
        throughput["enabled"] = False
        notes.append(
            "timers.throughput.enabled=false: DeepSpeed's timer synchronises at every micro-step"
        )
    config.setdefault("wall_clock_breakdown", False)
    if config["wall_clock_breakdown"]:
        notes.append("wall_clock_breakdown is true: it synchronises several times in each step")
    if "steps_per_print" in config:
        notes.append(
            "steps_per_print has no effect: accelerate sets it to infinity, and WikiLLM logs"
        )
