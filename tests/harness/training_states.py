"""Rank program: a tiny model under any engine; its state as fragments, or filled by slices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Qwen2ForCausalLM

from harness.tiny_model import tiny_config
from wikillm.checkpoints.tensor_layout import TensorSpec
from wikillm.config.schema_train import TrainSection
from wikillm.train.fragments.average import WeightAverage
from wikillm.train.fragments.layout import undo_first_step
from wikillm.train.fragments.state import TrainingState
from wikillm.train.optimizer import build_muon, parameter_groups
from wikillm.train.reapply_settings import StartSettings

SEQUENCES = 4
DECAY = 0.75
Parts = list[tuple[TensorSpec, int, np.ndarray]]
Whole = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Case:
    """An engine. `stage` is None for DDP (a plain model on one rank)."""

    world: int
    stage: int | None
    optimizer: str = "adamw"
    precision: str = "fp32"
    offload: tuple[str, ...] = ()  # offload_optimizer, offload_param
    zero: tuple[tuple[str, Any], ...] = ()  # more keys of zero_optimization
    json: tuple[tuple[str, Any], ...] = ()  # more keys of the whole file

    def __str__(self) -> str:
        engine = "ddp" if self.stage is None else f"zero{self.stage}"
        more = [*self.offload, *(name for name, _ in (*self.zero, *self.json))]
        return "-".join([f"{self.world}x{engine}", self.optimizer, self.precision, *more])


@dataclass
class Outcome:
    """Of one rank: its state where the case begins or is saved, and after more steps."""

    specs: list[TensorSpec]
    fragments: Parts
    counters: dict[str, Any]
    losses: list[float]  # of the global batches of the steps in between
    specs_after: list[TensorSpec]
    fragments_after: Parts
    counters_after: dict[str, Any]
    weights: list[np.ndarray]  # the model's own on this rank, after all steps


def run_case(
    case: Case, saved: tuple[Whole, dict[str, Any]] | None, before: int, after: int
) -> Outcome:
    """Train `before` steps or load `saved`, take the state, and train `after` more steps."""
    return run_cases(case, [saved], before, after)[0]


def run_cases(
    case: Case, starts: list[tuple[Whole, dict[str, Any]] | None], before: int, after: int
) -> list[Outcome]:
    """`run_case` from each of `starts`, with an engine of its own."""
    if case.world > 1 or case.stage is not None:
        _init_process_group(case)
    return [_run(case, saved, before, after) for saved in starts]


def _run(
    case: Case, saved: tuple[Whole, dict[str, Any]] | None, before: int, after: int
) -> Outcome:
    engine = _Engine(case)
    average = WeightAverage(engine.state())
    if saved is None:
        for step in range(before):
            engine.train(step)
            average.update(DECAY)
    else:
        whole, counters = saved

        def read(spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(whole[spec.kind, spec.name].reshape(-1)[start:stop].copy())

        engine.state().load(read, counters)
        if any(kind == "average" for kind, _ in whole):
            average.load(read)
        engine.settings.reapply(engine.wrapped, engine.scheduler)
    state = engine.state()
    fragments = _arrays(state, average)
    specs = _specs(state, average)
    counters = state.counters()
    losses = []
    for step in range(before, before + after):
        losses.append(engine.train(step))
        average.update(DECAY)
    last = engine.state()
    weights = [_of_this_rank(parameter) for parameter in engine.module.parameters()]
    return Outcome(
        specs,
        fragments,
        counters,
        losses,
        _specs(last, average),
        _arrays(last, average),
        last.counters(),
        weights,
    )


def _of_this_rank(parameter: Any) -> np.ndarray:
    """A parameter of the model; under ZeRO-3 this rank's part of it, without the padding."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter.detach().float().numpy().copy()
    left = parameter.ds_numel - dist.get_rank() * part.numel()
    return part.detach().float().numpy()[: max(0, left)].copy()


def _specs(state: Any, average: WeightAverage) -> list[TensorSpec]:
    return [*state.specs(), *(average.specs() if average.has_begun else ())]


def _arrays(state: Any, average: WeightAverage) -> Parts:
    found = [*state.fragments(), *average.parts]
    return [(part.spec, part.start, part.values.numpy().copy()) for part in found]


def merged(specs: list[TensorSpec], parts: list[Parts]) -> Whole:
    """The whole tensors; fails unless every element is in one fragment of one rank."""
    whole = {(s.kind, s.name): np.zeros(s.numel, np.float32) for s in specs}
    times = {key: np.zeros(len(values), np.int64) for key, values in whole.items()}
    for fragments in parts:
        for spec, start, values in fragments:
            assert values.dtype == np.float32 and values.ndim == 1
            whole[spec.kind, spec.name][start : start + len(values)] = values
            times[spec.kind, spec.name][start : start + len(values)] += 1
    assert all((count == 1).all() for count in times.values())
    return {(s.kind, s.name): whole[s.kind, s.name].reshape(s.shape) for s in specs}


def _init_process_group(case: Case) -> None:
    if case.stage is None:
        dist.init_process_group("gloo")
        return
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")


def _model() -> Qwen2ForCausalLM:
    """Sizes that no number of ranks divides, so that parts end inside of parameters."""
    config = tiny_config(vocab_size=101)
    config.update({
        "hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10,
        "intermediate_size": 35,
    })  # fmt: skip
    torch.manual_seed(5)
    return Qwen2ForCausalLM(config)


class _Engine:
    def __init__(self, case: Case) -> None:
        self.case = case
        model = _model()
        optimizer = self._optimizer(model)
        rate = lambda n: 1.0 / (1 + n / 10)  # noqa: E731
        if case.stage is None:
            self.model: Any = model
            if case.world > 1:
                self.model = torch.nn.parallel.DistributedDataParallel(model)
            self.optimizer: Any = optimizer
            self.scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        else:
            import deepspeed

            self.model, self.optimizer, _, self.scheduler = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=self._config(),
                lr_scheduler=lambda basic: torch.optim.lr_scheduler.LambdaLR(basic, rate),
            )
        self.module = getattr(self.model, "module", self.model)
        # Like accelerate's wrapper.
        self.wrapped = SimpleNamespace(
            optimizer=self.optimizer, param_groups=self.optimizer.param_groups
        )
        undo_first_step(self.wrapped)
        self.settings = StartSettings.of(self.wrapped, self.scheduler)

    def state(self) -> Any:
        return TrainingState(self.model, self.wrapped, scheduler=self.scheduler)

    def train(self, step: int) -> float:
        """One optimizer step on the global batch of `step`. Returns the global batch's loss."""
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 101, (SEQUENCES, 16), generator=generator)
        rank = int(os.environ.get("RANK", "0"))
        share = ids.chunk(self.case.world)[rank]
        loss = self.model(input_ids=share, labels=share).loss
        if self.case.stage is None:
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        else:
            self.model.backward(loss)
            self.model.step()
        total = loss.detach().double()
        if self.case.world > 1:
            dist.all_reduce(total)
        return float(total) / self.case.world

    def _optimizer(self, model: Any) -> Any:
        if self.case.optimizer == "cpu_adam":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(model.parameters(), lr=1e-2, weight_decay=0.1)
        if self.case.optimizer == "muon":
            train = TrainSection(optimizer="muon", learning_rate=1e-2, weight_decay=0.1)
            groups = parameter_groups(model, train, final_norm_init=0.125)
            return build_muon(groups, under_deepspeed=self.case.stage is not None)
        named = list(model.named_parameters())
        decayed = [name for name, parameter in named if parameter.dim() == 2]
        groups = [
            {"params": [p for n, p in named if n in decayed], "weight_decay": 0.1},
            {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-2)

    def _config(self) -> dict[str, Any]:
        case = self.case
        zero: dict[str, Any] = {"stage": case.stage, "stage3_param_persistence_threshold": 40}
        if case.optimizer == "muon" and case.stage == 3:
            zero["reduce_scatter"] = False
        zero |= {name: {"device": "cpu"} for name in case.offload}
        return {
            "train_micro_batch_size_per_gpu": SEQUENCES // case.world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero | dict(case.zero),
            "bf16": {"enabled": case.precision == "bf16"},
        } | dict(case.json)
