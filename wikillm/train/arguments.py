"""The one file that knows Hugging Face's names: configuration and plan -> TrainingArguments.

Making TrainingArguments also creates the process group and HF's DeepSpeed config, which ZeRO-3 looks up while
the model is built. HF keeps only a weak reference to that config: whoever builds the model takes the arguments.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from wikillm.config.precision import Precision, resolve_precision
from wikillm.config.schema import RunConfig, TrainSection
from wikillm.plan.run_plan import Plan
from wikillm.plan.schedule import decay_steps


def precision_here(wanted: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """The precision on this machine."""
    has_gpu = torch.cuda.is_available()
    has_bf16 = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return resolve_precision(wanted, has_gpu=has_gpu, has_bf16=has_bf16)


def to_training_arguments(
    cfg: RunConfig,
    plan: Plan,
    staging: Path,
    precision: Precision,
    deepspeed: dict[str, Any] | None,
) -> TrainingArguments:
    """HF's arguments for this run. `staging` is where checkpoints are written before they are published. (all ranks)"""
    train, on_gpu = cfg.train, torch.cuda.is_available()
    _quieten_libraries()
    args = TrainingArguments(
        output_dir=str(staging),
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=train.per_device_eval_batch_size or plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,  # DeepSpeed's JSON must say the same; WikiTrainer accumulates
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
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=cfg.run.seed,
        deepspeed=deepspeed,
        ddp_find_unused_parameters=False,
        # Without launcher and DeepSpeed there is no group, and naming a backend would make accelerate look for it.
        ddp_backend="gloo"
        if not on_gpu and (plan.world_size > 1 or torch.distributed.is_initialized())
        else None,
        # Without it a machine without GPU sees world size 1 on every rank and trains the same data twice.
        use_cpu=not on_gpu,
        # What WikiLLM does itself: data order, resume position, evaluation, logging, tracking, rotation.
        ignore_data_skip=True,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        average_tokens_across_devices=True,
        eval_strategy="no",  # ReportCallback asks for evaluations; HF would want a dataset object
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=train.logging_steps,
        logging_first_step=True,
        # The filter would sync with the GPU at every micro-step and show NaN as an old loss.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
    )
    _ = (
        args.device
    )  # HF makes the process group at the first look at the device; nobody should look before
    return args


def follow_plan(args: TrainingArguments, cfg: RunConfig, plan: Plan) -> None:
    """Give arguments that exist the horizon and the warm-up of a plan that was made again for a checkpoint. (all ranks)"""
    args.max_steps = plan.max_steps
    args.warmup_steps = plan.warmup_steps
    args.lr_scheduler_kwargs = _scheduler_kwargs(cfg.train, plan)


def _quieten_libraries() -> None:
    """Leave out what the libraries say although nothing is wrong."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    transformers_logging.disable_progress_bar()
    # HF gives accelerate 1 accumulation step on purpose and counts itself; accelerate warns that DeepSpeed has more.
    logging.getLogger("accelerate.accelerator").addFilter(
        lambda record: "Gradient accumulation steps mismatch" not in record.getMessage()
    )
    # What a resume changes is logged by train.resume, with more keys, and it is in force.
    logging.getLogger("transformers.trainer_utils").addFilter(
        lambda record: (
            "do not match the ones in the `trainer_state.json`" not in record.getMessage()
        )
    )


def _scheduler_kwargs(train: TrainSection, plan: Plan) -> dict[str, Any]:
    if train.lr_scheduler_type == "cosine_with_min_lr":
        return {"min_lr_rate": train.min_lr_ratio}
    if train.lr_scheduler_type == "warmup_stable_decay":
        decay = decay_steps(train, max_steps=plan.max_steps, warmup_steps=plan.warmup_steps)
        return {"num_decay_steps": decay, "decay_type": train.lr_decay_type}
    return {}
