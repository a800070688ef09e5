"""Scores `train.eval_tasks` while training: every `eval_tasks_steps`, or at each evaluation.

Under every ZeRO stage all ranks take part, each with a part of the questions. Scoring draws no
random numbers and restores the model's mode: a run with tasks is bit-identical to one without.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel, TrainerCallback, TrainerState

from wikillm.core.log import say, warn
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.evals.choices import ChoiceScore, encode_task, score_choices
from wikillm.evals.questions import ChoiceTask, read_tasks
from wikillm.evals.results import FOLDER, write_results
from wikillm.evals.text import context_limit
from wikillm.observe import names
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.trainer import WikiTrainer


class EvalTasksCallback(TrainerCallback):
    """Scores the configured tasks and hands the numbers to the report."""

    def __init__(self, trainer: WikiTrainer, report: ReportCallback) -> None:
        self.trainer = trainer
        self.report = report
        train = trainer.context.resolved.config.train
        self.every = train.eval_tasks_steps
        self.budget = train.eval_tasks_budget
        self.limit = context_limit(
            cast(PreTrainedModel, trainer.model).config, train.sequence_length
        )
        self.tasks = [task.first(self.budget) for task in read_tasks(train.eval_tasks)]
        tokenizer = load_tokenizer(trainer.context.corpus.tokenizer_dir)
        self.encoded = [
            encode_task(tokenizer, task, shots=task.shots, limit=self.limit) for task in self.tasks
        ]

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._score(state.global_step)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.every is None:
            self._score(state.global_step)

    def _score(self, step: int) -> None:
        context = self.trainer.context
        context.heartbeat.enter("evaluate")
        found: list[ChoiceScore] = []
        with self.report.meter.pause():
            for task, encoded in zip(self.tasks, self.encoded, strict=True):
                score = score_choices(
                    self.trainer.model_wrapped,
                    encoded,
                    [question.subject for question in task.questions],
                    batch_size=self.trainer.data.eval_micro_batch,
                    device=self.trainer.args.device,
                    rank=context.world.rank,
                    world_size=context.world.size,
                    sum_over_ranks=context.group.sum,
                    should_stop=self.trainer.should_stop_evaluating,
                )
                if score is None:
                    return  # a stop request, on all ranks
                found.append(score)
        if context.world.is_main:
            self._report(step, found)

    def _report(self, step: int, found: list[ChoiceScore]) -> None:
        """Log lines, metrics and a record in RUN/evals. (rank 0)"""
        values: dict[str, float] = {}
        for task, score in zip(self.tasks, found, strict=True):
            result = score.overall
            if not result["questions"]:
                warn(f"{task.name}: no question fits into {self.limit} tokens")
                continue
            say(
                f"{task.name} at step {step:,}: accuracy {result['accuracy']:.1%}, "
                f"{result['verdict']} ({result['chance']:.1%}), {result['bits_per_byte']:.4f} "
                f"bits/byte on {result['questions']:,} questions"
            )
            for name in (names.TASK_ACCURACY, names.TASK_BITS_PER_BYTE):
                values[names.of_source(name, task.name)] = result[name.removeprefix("task_")]
        for sink in self.report.sinks:
            sink.log(step, values, names.TASKS)
        context = self.trainer.context
        records = [self._record(task, score) for task, score in zip(self.tasks, found, strict=True)]
        model = {"path": str(context.run.path), "step": step, "sha256": None}
        try:
            path = context.run.path / FOLDER / f"training-{step}.json"
            write_results(path, model, {"tasks": records})
        except (OSError, ValueError) as error:  # a full disk; a NaN among the scores
            warn(f"the scores of step {step} are not recorded: {error}")

    def _record(self, task: ChoiceTask, score: ChoiceScore) -> dict[str, Any]:
        return score.to_json(task, shots=task.shots, max_questions=self.budget, context=self.limit)
