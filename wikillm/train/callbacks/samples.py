"""Generates samples while training: every `sample_steps`, or at each evaluation.

The random state is restored afterwards, so a run with samples is bit-identical to one without.
Under ZeRO-3 all ranks take part, because every forward pass gathers weights; otherwise only rank 0
does.
"""

from __future__ import annotations

from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from wikillm.core.log import warn
from wikillm.generate.complete import Sampling, complete
from wikillm.observe.sinks import Sample
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.trainer import WikiTrainer


class SampleCallback(TrainerCallback):
    """Completes the configured prompts and hands the texts to the report."""

    def __init__(self, trainer: WikiTrainer, report: ReportCallback) -> None:
        context = trainer.context
        self.trainer = trainer
        self.report = report
        self.observe = context.resolved.config.observe
        self.is_partitioned = context.engine.zero_stage == 3 and context.world.size > 1
        takes_part = context.world.is_main or self.is_partitioned
        self.takes_part = bool(self.observe.sample_prompts) and takes_part
        folder = context.corpus.tokenizer_dir
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        every = self.observe.sample_steps
        if every is not None and state.global_step % every == 0:
            self._sample(state.global_step)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.observe.sample_steps is None:
            self._sample(state.global_step)

    def _sample(self, step: int) -> None:
        """Complete every prompt and report the texts."""
        if not self.takes_part:
            return  # this rank waits for rank 0 in the next step
        prompts = self.observe.sample_prompts
        self.trainer.context.heartbeat.enter("evaluate")
        try:
            with self.report.meter.pause():
                texts = complete(
                    cast(PreTrainedModel, self.trainer.model),
                    self.tokenizer,
                    prompts,
                    eos_id=self.trainer.context.corpus.manifest.tokenizer.eos_id,
                    sampling=Sampling(max_new_tokens=self.observe.sample_tokens, seed=step),
                    synced_gpus=self.is_partitioned,
                    should_stop=self._should_stop,
                )
        except ValueError as error:  # a prompt leaves no room for tokens: the same on every rank
            warn(f"no samples: {error}")
            return
        if len(texts) < len(prompts):
            return  # a stop request: the ranks agree on it at the next vote
        samples = [Sample(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        self.report.show_samples(step, samples)

    def _should_stop(self) -> bool:
        """Whether a stop was requested on this rank, or on any rank if all take part."""
        is_asked = self.trainer.context.signals.received is not None
        return self.trainer.context.group.any(is_asked)[0] if self.is_partitioned else is_asked
