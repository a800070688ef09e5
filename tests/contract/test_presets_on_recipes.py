"""Every run preset, and every model preset under the default run, loads and plans on every shipped
DeepSpeed JSON. Presets with Muon are refused where it does not work, and plan with AdamW there."""

from __future__ import annotations

import pytest

from wikillm.config.deepspeed import DeepSpeedRun, read_deepspeed, shipped_names
from wikillm.config.deepspeed_resolve import resolve_deepspeed
from wikillm.config.load import load
from wikillm.config.presets import preset_names
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError
from wikillm.plan.check_recipe import check_recipe
from wikillm.plan.run_plan import make_plan

RUNS = [(run, ()) for run in preset_names("runs")]
MODELS = [(None, (f"model.preset={name}",)) for name in preset_names("models")]
WORLDS = {  # all other presets run on 1, 8 and 64 GPUs
    "demo": (1, 8),
    "long-1.7b-32k": (2, 8),
    "long-7b-128k": (4, 8),
}
NOT_WITH_MUON = ("zero2_offload", "zero3_offload", "zero3_plus")
ADAMW = "train.optimizer=adamw train.max_grad_norm=1"
QWEN2_LENGTH = 151_646
TRAIN_TOKENS = 100_000_000_000


def tokenizer_length(name: str) -> int:
    """As many tokens as `train:8000` asks for, otherwise as many as Qwen2's tokenizer has."""
    return int(name.removeprefix("train:")) if name.startswith("train:") else QWEN2_LENGTH


def check(resolved: Resolved, world: int) -> None:
    check_recipe(resolved, ranks=world, ranks_per_node=world, precision="bf16", has_gpu=True)


def test_there_is_something_to_try() -> None:
    assert len(RUNS) >= 10 and len(MODELS) >= 14 and len(shipped_names()) >= 7


@pytest.mark.parametrize("recipe", shipped_names())
@pytest.mark.parametrize(("run", "words"), [*RUNS, *MODELS], ids=lambda value: str(value))
def test_plans(run: str | None, words: tuple[str, ...], recipe: str) -> None:
    for world in WORLDS.get(str(run), (1, 8, 64)):
        resolved = load(run, words, deepspeed=recipe)
        if resolved.config.train.optimizer == "muon" and recipe in NOT_WITH_MUON:
            with pytest.raises(ConfigError, match="Muon does not work with") as refused:
                check(resolved, world)
            assert ADAMW in str(refused.value)
            resolved = load(run, (*words, *ADAMW.split()), deepspeed=recipe)
        check(resolved, world)
        length = tokenizer_length(resolved.config.data.tokenizer)
        plan = make_plan(
            resolved, world_size=world, tokenizer_length=length, train_tokens=TRAIN_TOKENS
        )
        values = DeepSpeedRun(
            resolved.config.train,
            hidden_size=resolved.config.model.hidden_size,
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            world_size=world,
            local_world_size=world,
            precision="bf16",
            has_gpu=True,
        )
        engine = resolve_deepspeed(read_deepspeed(recipe), values)
        assert (
            plan.global_batch_sequences
            == plan.micro_batch * plan.accumulation * plan.sequence_groups
        )
        assert (
            engine.json["train_batch_size"]
            == plan.global_batch_sequences * plan.sequence_parallel_size
        )
