"""Finds the checkpoint that a run resumes from, and compares it with the present configuration.

Data, order, batch, model and precision give the saved state its meaning and must not change. All
differences are refused in one error. Other settings may change, including the number of ranks and
the ZeRO stage; each change is logged (see resume_keys).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from wikillm.checkpoints.latest import Verify, find_complete, latest_complete
from wikillm.checkpoints.lineage import Ancestry, arrange, left_behind, read_ancestry
from wikillm.checkpoints.manifest import (
    damage,
    raise_if_damaged,
    read_manifest,
    read_state,
    verify,
)
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.config.init_from import shape_settings
from wikillm.config.resolved import typed_form
from wikillm.config.schema import ModelSection
from wikillm.core.errors import CheckpointError
from wikillm.core.log import say
from wikillm.core.memory import available_memory
from wikillm.core.world import World
from wikillm.data.store.manifest import fingerprint_of
from wikillm.train.collectives import ControlGroup
from wikillm.train.restore import is_portable
from wikillm.train.resume_keys import (
    ON_RESUME,
    REFUSED,
    changed_first_weights,
    changed_settings,
)

MUST_MATCH = {
    "store": "data.*",
    "mixture": "data.mixture",
    "seed": "run.seed",
    "window_shards": "data.window_shards",
    "sequence_length": "train.sequence_length",
    "document_mask": "train.document_mask",
    "packing": "data.packing",
    "global_batch_sequences": "train.global_batch_tokens",
    "batch_ramp": "train.batch_ramp_from, which was removed",
    "vocab_size": "model.vocab_size or data.tokenizer",
    "parameters": "model.*",
    "max_steps": "the horizon (train.max_steps, max_tokens or num_train_epochs)",
    "precision": "train.precision",
    "zero_stage": "--deepspeed",
    "world_size": "the number of processes",
    "optimizer": "train.optimizer",
    "ema": "train.ema_decay, train.ema_start",
}
"""Each value of a checkpoint that must equal the run's, and the setting that decides it."""
REMOVED = {"batch_ramp": "off"}
"""Values that new checkpoints no longer record, each with what a missing one means."""
CHANGEABLE = ("max_steps", "global_batch_sequences")
"""Values that --allow-change lets differ. With any other difference the state would not load, or
would mean something else."""
_LAYOUT = ("zero_stage", "world_size")
"""Values that must be equal for checkpoints of format 1 only, which are not portable."""


class Computed(NamedTuple):
    """Loss and gradient norm that were logged after a step. `loss` is the mean since the log before
    it."""

    step: int
    loss: float
    grad_norm: float | None


@dataclass(slots=True)
class Replay:
    """A request to train up to the step of `logged`; `passes` collects each pass's result."""

    logged: Computed
    passes: list[Computed] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """The command line's `--resume`, `--allow-change` and `--trust-checkpoint`, or a replay."""

    resume: str
    allow_change: bool
    trust_checkpoint: bool
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A verified checkpoint.

    Attributes:
        state: content of its wikillm_state.json.
        origin: ancestry of the checkpoint; None for another run's checkpoint.
        verified: bytes that this rank has verified, kept until they are loaded.
    """

    checkpoint: Path
    step: int
    consumed_samples: int
    state: dict[str, Any]
    origin: Ancestry | None = None
    verified: VerifiedBytes | None = None

    @property
    def trained_samples(self) -> int:
        """Consumed samples, less those that the run has skipped (RUN/skips.json)."""
        skipped = self.state.get("skipped", ())
        return self.consumed_samples - sum(each["stop"] - each["first"] for each in skipped)

    def forget_verified(self) -> None:
        """Free the bytes, once the checkpoint is loaded."""
        if self.verified is not None:
            self.verified.clear()


def find_resume_point(checkpoints: Path, resume: str, check: Verify = verify) -> ResumePoint | None:
    """The checkpoint to resume from. None when `resume` is "auto" and there is none.

    Args:
        checkpoints: the run's checkpoint folder.
        resume: "never", "auto" (the newest complete one) or the path of a checkpoint or run.

    Raises:
        CheckpointError: the named checkpoint, or with "auto" every one, is missing or damaged.
    """
    if resume == "never":
        return None
    if resume == "auto":
        checkpoint = latest_complete(checkpoints, check)
    else:
        checkpoint = find_complete(Path(resume), check)
    if checkpoint is None:
        return None
    state = read_state(checkpoint)
    is_ours = checkpoint.parent.resolve() == checkpoints.resolve()
    origin = read_ancestry(checkpoint) if is_ours else None
    return ResumePoint(
        checkpoint, int(state["step"]), int(state["consumed_samples"]), state, origin
    )


def agree_on_resume_point(
    checkpoints: Path, resume: str, group: ControlGroup, world: World
) -> ResumePoint | None:
    """Rank 0 looks for the checkpoint; every rank verifies a part of each candidate. (all ranks)

    All ranks return rank 0's answer or raise its error. Each rank keeps the bytes that it has
    verified, limited to the memory that a save would need.
    """
    verified = VerifiedBytes(int(available_memory() / 1.5 / world.local_size))

    def verify_together(checkpoint: Path) -> None:
        group.gather(checkpoint)
        raise_if_damaged(checkpoint, _damage_on_all_ranks(checkpoint, group, world, verified))

    answer: Any = None
    if world.is_main:
        try:
            answer = find_resume_point(checkpoints, resume, verify_together)
        except (CheckpointError, OSError) as error:
            answer = error
        group.gather(answer)
    else:
        # Rank 0 sends every candidate's path, then its answer.
        while isinstance(answer := group.gather(None)[0], Path):
            _damage_on_all_ranks(answer, group, world, verified)
    if isinstance(answer, Exception):
        raise answer
    return replace(answer, verified=verified) if isinstance(answer, ResumePoint) else None


def _damage_on_all_ranks(
    checkpoint: Path, group: ControlGroup, world: World, verified: VerifiedBytes
) -> list[str]:
    verified.clear()  # drop the bytes of the previous candidate
    try:
        manifest = read_manifest(checkpoint)
        findings = damage(checkpoint, manifest, rank=world.rank, ranks=world.size, kept=verified)
    except CheckpointError as error:
        findings = [error.got or error.what]
    by_rank: list[Any] = group.gather(findings)
    return [line for lines in by_rank for line in lines]


def check_same_tokens(point: ResumePoint, read: dict[str, Any]) -> None:
    """Refuse a store whose shards were rebuilt with other tokens than the checkpoint was trained
    on.

    Args:
        read: the store's present `data_read` for the samples that the checkpoint has consumed.
    """
    if point.state.get("data_read", read) == read:
        return
    raise CheckpointError(
        f"{point.checkpoint} was trained on other tokens than its store holds now.",
        got=f"the first {read['shards']} shards: {read['sha256']}, "
        f"then {point.state['data_read']}; "
        "shards are rebuilt when their encoder is found to differ",
        fix="start again from step 0 in another run.dir",
    )


def check_same_run(
    point: ResumePoint,
    values: dict[str, Any],
    *,
    allow_change: bool,
    model: ModelSection | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to resume when the configuration no longer fits the checkpoint.

    Args:
        values: see MUST_MATCH.
        model: compared field by field, since another model may have as many parameters.
        settings: this start's settings, as returned by `resume_keys.recorded_settings`.

    Raises:
        CheckpointError: lists every difference with its setting, and a fix.
    """
    # One line for each difference in MUST_MATCH, the model and the first weights.
    values = REMOVED | values
    then = {name: (REMOVED | point.state).get(name) for name in MUST_MATCH}
    changed = {name for name in MUST_MATCH if then[name] != values[name]}
    if allow_change:
        changed -= set(CHANGEABLE)
    if is_portable(point.checkpoint):
        changed -= set(_LAYOUT)
    deciding = {name: MUST_MATCH[name] for name in MUST_MATCH if name in changed}
    lines = [f"{n}: {then[n]} then, {values[n]} now   ({by})" for n, by in deciding.items()]
    if "store" in changed:
        lines += _differences(point.state.get("store_facts", {}), values.get("store_facts", {}))
    other_model = _model_differences(point.checkpoint, model) if model is not None else []
    lines += other_model
    other_start = changed_first_weights(point.state.get("settings", {}), settings or {})
    if other_start is not None:
        lines.append(f"{other_start}   (it sets the weights of step 0)")
    if not lines:
        return
    # First fix: the old values; or the old store, if this version of WikiLLM has another cleaner.
    back = "set it back"
    if any(line.startswith("data.cleaner:") for line in lines):
        store = f"data.path=null data.store=stores/{str(then['store'])[:12]}"
        back = f"continue with the store of that run: {store}"
    # Second fix: keep the new values. --allow-change accepts them if only horizon or batch differ.
    # Otherwise another run is needed; it can begin with the checkpoint's weights if they fit.
    weights_differ = other_model or {"vocab_size", "parameters"} & changed
    if len(lines) == len(changed & set(CHANGEABLE)):
        fix = "set it back, or accept the new value (the schedule follows it): --allow-change"
    elif weights_differ or any("tokenizer" in line for line in lines):
        fix = f"{back}; or train another model in a new run directory: run.dir=NEW"
    else:
        fix = (
            f"{back}; or continue from the weights alone in a new run directory:\n"
            f"wikillm export {shlex.quote(str(point.checkpoint))} --to FOLDER, "
            "then model.init_from=FOLDER run.dir=NEW"
        )
    raise CheckpointError(
        f"{point.checkpoint} was written by a run that differs from this one.",
        "\n".join(lines),
        fix,
    )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs between the two mappings."""
    return [
        f"{name}: {typed_form(then.get(name))} then, {typed_form(now.get(name))} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def short_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A token store's facts for a checkpoint: numbers unchanged, other values as short hashes."""
    return {
        name if name.startswith("data.") else f"data.{name}": value
        if value is None or isinstance(value, int | float)
        else fingerprint_of({name: value})[:12]
        for name, value in facts.items()
    }


def _model_differences(checkpoint: Path, model: ModelSection) -> list[str]:
    """Fields of the model that differ from the config.json in the checkpoint."""
    if not (checkpoint / "config.json").is_file():
        return []
    then = {setting.key: setting.value for setting in shape_settings(str(checkpoint))}
    now = {
        key: getattr(model, key.removeprefix("model.")) for key in then if ON_RESUME[key] == REFUSED
    }
    for values in (then, now):
        if values["model.head_dim"] is None:
            heads = values["model.num_attention_heads"]
            values["model.head_dim"] = values["model.hidden_size"] // heads
    del now["model.vocab_size"]  # may be "auto" here; the number of rows is one of MUST_MATCH
    return _differences({key: then[key] for key in now}, now)


def log_abandoned(point: ResumePoint, checkpoints: Path) -> None:
    """Name the checkpoints that this resume abandons: those written after `point`."""
    known = arrange(checkpoints).abandoned  # already reported by the search for the checkpoint
    names = ", ".join(
        path.name for path in left_behind(checkpoints, point.origin) if path not in known
    )
    if names:
        say(f"           abandoned: {names}; --resume auto continues from here")


def log_changes(point: ResumePoint, values: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Log each setting that differs from the checkpoint's and is applied from now on."""
    recorded = point.state.get("settings", {})
    for change in changed_settings(recorded, settings):
        say(f"changed on resume: {change}")
    # A share of the horizon, and a preset's warm-up, follow the horizon.
    names = {"max_steps": "horizon", "warmup_steps": "warm-up"}
    if recorded.get("train.warmup_steps") != settings.get("train.warmup_steps"):
        del names["warmup_steps"]  # logged above
    for key, name in names.items():
        before = point.state.get(key, values[key])
        if before != values[key]:
            say(f"changed on resume: {name} {before:,} -> {values[key]:,} steps")
    for name in _LAYOUT:
        then = point.state[name]
        if then != values[name]:
            label = name.replace("_", " ")
            say(f"changed on resume: {label} {_layout_name(then)} -> {_layout_name(values[name])}")


def _layout_name(value: int | None) -> str:
    return "none (data parallel)" if value is None else str(value)
