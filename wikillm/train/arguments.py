"""Makes Hugging Face's TrainingArguments from configuration and plan: the only file with HF's keys.

TrainingArguments also create the process group and HF's DeepSpeed config, which ZeRO-3 looks up
while the model is built. HF keeps only a weak reference to that config, so `build_model` takes the
arguments to keep it alive.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from wikillm.config.schema_train import TrainSection
from wikillm.plan.run_plan import Plan
from wikillm.plan.schedule import decay_steps
from wikillm.train.context import PlannedRun


def to_training_arguments(planned: PlannedRun) -> TrainingArguments:
    """HF's arguments for this run. Creates the process group. (all ranks)"""
    train = planned.resolved.config.train
    plan = planned.plan
    engine = planned.engine
    on_gpu = torch.cuda.is_available()
    is_distributed = plan.world_size > 1 or torch.distributed.is_initialized()
    _silence_harmless_warnings()
    args = TrainingArguments(
        output_dir=str(planned.run.staging),  # unused: CheckpointSaver writes there
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=train.per_device_eval_batch_size or plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,  # for DeepSpeed; WikiTrainer accumulates
        max_steps=plan.max_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        lr_scheduler_kwargs=_scheduler_kwargs(train, plan),
        warmup_steps=plan.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        bf16=engine.precision == "bf16",
        fp16=engine.precision == "fp16",
        seed=planned.resolved.config.run.seed,
        deepspeed=engine.json,
        ddp_find_unused_parameters=False,
        # A single process has no group; a named backend would make accelerate look for one.
        ddp_backend="gloo" if not on_gpu and is_distributed else None,
        # Without `use_cpu`, HF on a CPU assumes world size 1: all ranks train on the same data.
        use_cpu=not on_gpu,
        # WikiLLM has its own data order, resume position, evaluation, tracking and rotation.
        ignore_data_skip=True,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        average_tokens_across_devices=True,
        eval_strategy="no",  # ReportCallback requests evaluations; HF would need a dataset object
        save_steps=train.save_steps,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        # The filter would sync with the GPU at every micro-step and show an old loss for NaN.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
    )
    _ = args.device  # HF creates the process group at the first read of the device
    return args


def follow_plan(args: TrainingArguments, train: TrainSection, plan: Plan) -> None:
    """Give the arguments the horizon and warm-up of a plan that a checkpoint has changed."""
    args.max_steps = plan.max_steps
    args.warmup_steps = plan.warmup_steps
    args.lr_scheduler_kwargs = _scheduler_kwargs(train, plan)


def _silence_harmless_warnings() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    transformers_logging.disable_progress_bar()
    # WikiTrainer accumulates, so HF gives accelerate 1 step while DeepSpeed's JSON has more.
    _drop("accelerate.accelerator", "Gradient accumulation steps mismatch")
    # Our log line "kernels" names the device.
    _drop("DeepSpeed", "Setting accelerator to CPU")
    # train/resume.py logs the changed settings of a resume, and covers more keys.
    _drop("transformers.trainer_utils", "do not match the ones in the `trainer_state.json`")


def _drop(logger: str, text: str) -> None:
    logging.getLogger(logger).addFilter(lambda record: text not in record.getMessage())


def _scheduler_kwargs(train: TrainSection, plan: Plan) -> dict[str, Any]:
    if train.lr_scheduler_type == "cosine_with_min_lr":
        return {"min_lr_rate": train.min_lr_ratio}
    if train.lr_scheduler_type == "warmup_stable_decay":
        decay = decay_steps(train, max_steps=plan.max_steps, warmup_steps=plan.warmup_steps)
        return {"num_decay_steps": decay, "decay_type": train.lr_decay_type}
    return {}
