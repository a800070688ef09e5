"""Hugging Face's names for what we have, and an answer for each name we do not have.

`ALIASES` maps a Trainer or run_clm flag to our key, `ADVICE` says what to use instead of one that has no
meaning here, `UNSUPPORTED` lists the rest of TrainingArguments (a test compares all three with the installed
transformers). Flags that equal a key of `train` need no entry.
"""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "output_dir": "run.dir",
    "run_name": "run.name",
    "seed": "run.seed",
    "train_file": "data.path",
    "tokenizer_name": "data.tokenizer",
    "preprocessing_num_workers": "data.workers",
    "model_name_or_path": "model.init_from",
    "attn_implementation": "model.attn_implementation",
    "block_size": "train.sequence_length",
    "max_length": "train.sequence_length",
    "max_seq_length": "train.sequence_length",
    "max_seq_len": "train.sequence_length",
    "model_max_length": "train.sequence_length",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "activation_checkpointing": "train.gradient_checkpointing",
    "lr": "train.learning_rate",
    "warmup_ratio": "train.warmup_steps",
    "deepspeed": "deepspeed.config",
}
"""HF's flag -> our key with the same meaning."""

SWITCHES = ("bf16", "fp16")
"""HF's two booleans that are one choice here: train.precision."""

ADVICE: dict[str, str] = {
    "report_to": "observe.swanlab.mode=offline|online|local|disabled: SwanLab is the only tracker",
    "torch_compile": "train.compile=layers (or elementwise)",
    "do_train": "leave it out: `wikillm train` trains and evaluates",
    "do_eval": "leave it out: `wikillm train` evaluates every train.eval_steps and at the end",
    "do_predict": "`wikillm eval` or `wikillm generate`",
    "overwrite_output_dir": "name a new run.dir, or continue with `--resume auto`",
    "resume_from_checkpoint": "`wikillm train --resume auto`, or `--resume CHECKPOINT`",
    "ignore_data_skip": "leave it out: a resumed run goes on at its own position in the data",
    "eval_strategy": "train.eval_steps=N",
    "evaluation_strategy": "train.eval_steps=N",
    "save_strategy": "train.save_steps=N",
    "logging_strategy": "train.logging_steps=N",
    "logging_dir": "run.dir (metrics.jsonl and logs/ lie there)",
    "logging_first_step": "leave it out: the first step is always logged",
    "optim": "leave it out: AdamW, or what the DeepSpeed configuration asks for",
    "half_precision_backend": "train.precision=auto|bf16|fp16|fp32",
    "dtype": "train.precision=auto|bf16|fp16|fp32",
    "torch_dtype": "train.precision=auto|bf16|fp16|fp32",
    "bf16_full_eval": "train.precision=bf16, for training and evaluation alike",
    "fp16_full_eval": "train.precision=fp16, for training and evaluation alike",
    "use_cpu": "leave it out: the CPU is used where there is no GPU",
    "no_cuda": "leave it out: the CPU is used where there is no GPU",
    "data_seed": "run.seed, which also seeds the order of the data",
    "lr_scheduler_kwargs": "train.min_lr_ratio (cosine_with_min_lr), train.lr_decay_share and train.lr_decay_type (warmup_stable_decay)",
    "config_name": "model.preset=NAME (`wikillm presets`), or single keys such as model.hidden_size=512",
    "config_overrides": "single keys such as model.hidden_size=512",
    "dataset_name": "data.path=FILE, data.preset=NAME, or data.path with a glob",
    "validation_file": "data.val_fraction: the validation text is held out of data.path",
    "validation_split_percentage": "data.val_fraction=0.05 for 5 %",
    "max_train_samples": "data.max_text_bytes=64MiB",
    "max_eval_samples": "train.max_eval_tokens=1M",
    "dataloader_drop_last": "leave it out: packing drops nothing",
    "group_by_length": "leave it out: all sequences have train.sequence_length tokens",
    "train_sampling_strategy": "leave it out: the order is a function of run.seed",
    "push_to_hub": "`wikillm export`, then upload the folder",
    "hub_model_id": "`wikillm export`, then upload the folder",
    "hub_token": "`wikillm export`, then upload the folder; never put a token on a command line",
    "trust_remote_code": "leave it out: code from a model folder is never run",
    "fsdp": "--deepspeed ds_configs/zero3.json",
    "fsdp_config": "--deepspeed ds_configs/zero3.json",
    "ddp_backend": "leave it out: nccl on GPUs, gloo on CPU",
    "config": "`--config NAME|FILE` once, before the other arguments",
    "dir": "run.dir=DIR",
    "path": "data.path=FILE",
    "tokenizer": "data.tokenizer=auto|qwen2|FOLDER|train:8000",
}
"""A name with no key of its own -> what to do instead."""

UNSUPPORTED = frozenset({
    "accelerator_config", "activation_checkpointing_kwargs", "auto_find_batch_size",
    "average_tokens_across_devices", "batch_eval_metrics", "dataloader_in_order",
    "dataloader_multiprocessing_context", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters",
    "ddp_static_graph", "ddp_timeout", "debug", "disable_tqdm", "enable_jit_checkpoint", "eval_accumulation_steps",
    "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_use_gather_object", "full_determinism",
    "gradient_checkpointing_kwargs", "greater_is_better", "hub_always_push", "hub_private_repo", "hub_revision",
    "hub_strategy", "include_for_metrics", "include_num_input_tokens_seen", "label_names", "label_smoothing_factor",
    "length_column_name", "liger_kernel_config", "load_best_model_at_end", "local_rank", "log_level",
    "log_level_replica", "log_on_each_node", "logging_nan_inf_filter", "metric_for_best_model",
    "neftune_noise_alpha", "optim_args", "optim_target_modules", "parallelism_config", "prediction_loss_only",
    "project", "remove_unused_columns", "restore_callback_states_from_checkpoint", "save_on_each_node",
    "save_only_model", "skip_memory_metrics", "tf32", "torch_compile_backend",
    "torch_compile_mode", "torch_empty_cache_steps", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id", "use_cache", "use_liger_kernel",
})  # fmt: skip
"""Names that Trainer knows, and that WikiLLM decides itself or does not offer."""
