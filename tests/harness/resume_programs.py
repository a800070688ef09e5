"""Runs that report the settings in use, to show that a resume does not replace them."""

from __future__ import annotations

from typing import Any

from harness.programs import train


def train_noting_settings(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train`. Return the settings in use at its first step, and a random draw per step."""
    import torch

    from wikillm.train.trainer import WikiTrainer

    found: dict[str, Any] = {"draws": {}}
    training_step = WikiTrainer.training_step

    def noting(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        if "groups" not in found:
            found.update(_in_use(self))
        found["draws"][self.state.global_step] = float(torch.rand(()))  # like dropout
        return training_step(self, *args, **kwargs)

    WikiTrainer.training_step = noting  # type: ignore[method-assign]
    return train(words, **options) | found


def _in_use(trainer: Any) -> dict[str, Any]:
    """Optimizer, schedule, state, callbacks and model of a running trainer, as plain values."""
    callbacks = {
        type(callback).__name__: callback for callback in trainer.callback_handler.callbacks
    }
    engine = trainer.model_wrapped
    report = callbacks["ReportCallback"]
    observe = callbacks["SampleCallback"].observe
    scheduler = trainer.lr_scheduler
    shape = trainer.data.shape
    shard = trainer.data.shard
    clips = [trainer.args.max_grad_norm]
    if trainer.is_deepspeed_enabled:
        clips += [
            engine.gradient_clipping(),
            getattr(engine.optimizer, "clip_grad", engine.gradient_clipping()),
        ]
    return {
        "groups": [
            {
                k: v
                for k, v in group.items()
                if isinstance(v, int | float | tuple | list) and k != "params"
            }
            for group in trainer.optimizer.param_groups
        ],
        "base_rates": list(scheduler.base_lrs),
        "factors": [scheduler.lr_lambdas[0](step) for step in range(trainer.args.max_steps)],
        "clips": clips,
        "logging_steps": trainer.state.logging_steps,
        "save_steps": trainer.state.save_steps,
        "eval_steps": report.eval_steps,
        "max_eval_tokens": trainer.data.max_eval_tokens,
        "save_total_limit": callbacks["DiskSpaceCallback"].saver.keep.newest,
        "keep_every_steps": callbacks["DiskSpaceCallback"].saver.keep.every,
        "keep_best": callbacks["DiskSpaceCallback"].saver.keep.best,
        "max_hours": callbacks["TimeLimitCallback"].hours,
        "max_skipped_steps": callbacks["StopCallback"]._skips.limit,
        "spikes": callbacks["SpikeCallback"].train.spikes,
        "max_skips": callbacks["SpikeCallback"].train.max_skips,
        "spike_window": callbacks["SpikeCallback"].train.spike_window,
        "spike_threshold": callbacks["SpikeCallback"].train.spike_threshold,
        "weight_check_steps": callbacks["WeightCheckCallback"].every,
        "self_check": "on" if "SelfCheckCallback" in callbacks else "off",
        "sample_steps": observe.sample_steps,
        "sample_prompts": list(observe.sample_prompts),
        "sample_tokens": observe.sample_tokens,
        "sequence_parallel_size": shard.size if shard else 1,
        "per_device_train_batch_size": shape.micro_batch,
        "per_device_eval_batch_size": trainer.data.eval_micro_batch,
        "global_batch": shape.global_batch,
        "max_steps": trainer.state.max_steps,
        "model": {
            k: v
            for k, v in trainer.model.config.to_dict().items()
            if isinstance(v, int | float | str)
        },
        "attn_implementation": trainer.model.config._attn_implementation,
    }
