"""Names that other trainers use, and what to write instead of each.

`ALIASES` and `SWITCHES` are Hugging Face's names that are accepted as flags. All others are
refused with advice: `ADVICE` and `UNSUPPORTED` cover the rest of TrainingArguments and run_clm (a
test compares them with the installed transformers), `OTHER_NAMES` those of nanoGPT, minimind,
LLaMA-Factory, Megatron, Lightning and torchtitan. These are not accepted because their units
differ, such as a batch in sequences or in tokens.
"""

from __future__ import annotations

import shlex

from wikillm.config.keys import all_keys, section_names
from wikillm.core.errors import did_you_mean

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
    "ignore_data_skip": "leave it out: a resumed run continues at its own position in the data",
    "eval_strategy": "train.eval_steps=N",
    "evaluation_strategy": "train.eval_steps=N",
    "save_strategy": "train.save_steps=N",
    "logging_strategy": "train.logging_steps=N",
    "logging_dir": "run.dir (it has metrics.jsonl and logs/)",
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
    "lr_scheduler_kwargs": "train.min_lr_ratio (cosine_with_min_lr), "
    "train.lr_decay_share and train.lr_decay_type (warmup_stable_decay)",
    "config_name": "model.preset=NAME (`wikillm presets`), or keys such as model.hidden_size=512",
    "config_overrides": "single keys such as model.hidden_size=512",
    "dataset_name": "data.path=FILE (or a glob), or data.preset=NAME",
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

UNSUPPORTED = frozenset(
    [
        "accelerator_config",
        "activation_checkpointing_kwargs",
        "auto_find_batch_size",
        "average_tokens_across_devices",
        "batch_eval_metrics",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "ddp_timeout",
        "debug",
        "disable_tqdm",
        "enable_jit_checkpoint",
        "eval_accumulation_steps",
        "eval_delay",
        "eval_do_concat_batches",
        "eval_on_start",
        "eval_use_gather_object",
        "full_determinism",
        "gradient_checkpointing_kwargs",
        "greater_is_better",
        "hub_always_push",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "include_for_metrics",
        "include_num_input_tokens_seen",
        "label_names",
        "label_smoothing_factor",
        "length_column_name",
        "liger_kernel_config",
        "load_best_model_at_end",
        "local_rank",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_nan_inf_filter",
        "metric_for_best_model",
        "neftune_noise_alpha",
        "optim_args",
        "optim_target_modules",
        "parallelism_config",
        "prediction_loss_only",
        "project",
        "remove_unused_columns",
        "restore_callback_states_from_checkpoint",
        "save_on_each_node",
        "save_only_model",
        "skip_memory_metrics",
        "tf32",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
        "use_cache",
        "use_liger_kernel",
    ]
)
"""TrainingArguments that WikiLLM decides itself or does not offer."""

_TRACKER = (
    "SwanLab is the only tracker: observe.swanlab.mode=online|offline|local|disabled; "
    "RUN/metrics.jsonl has every value as well"
)
_MICRO = (
    "train.per_device_train_batch_size={} (sequences per rank and micro-step; "
    "train.global_batch_tokens is the whole batch)"
)
_IN_TOKENS = "train.global_batch_tokens=N, in tokens: {} sequences x train.sequence_length"
_ATTENTION = "model.attn_implementation=flash_attention_2 (sdpa is the default)"
_PROCESSES = (
    "the launcher decides it: deepspeed --num_gpus N train.py, torchrun --nproc_per_node N train.py, "
    "or `wikillm launch multi --gpus N`"
)
_RESUME = "`wikillm train --resume auto`, or `--resume CHECKPOINT`"
_PRETRAINS = "leave it out: WikiLLM pretrains; it has no fine-tuning"
_CHECKPOINTING = "train.gradient_checkpointing=full (or selective, none)"
_WORKERS = (
    "train.dataloader_num_workers={} (loader processes per rank), "
    "or data.workers={} (processes that build the token store)"
)
_SCHEDULE = (
    "train.lr_scheduler_type=cosine|cosine_with_min_lr|linear|constant|constant_with_warmup"
    "|warmup_stable_decay"
)

_GROUPS: tuple[tuple[str, str], ...] = (
    (
        _MICRO,
        "batch_size micro_batch_size device_batch_size per_device_batch_size mini_batch_size "
        "micro_batch local_batch_size train_micro_batch_size_per_gpu batch_size_per_gpu "
        "per_gpu_batch_size bs mbs",
    ),
    (
        "train.global_batch_tokens={} (tokens per optimizer step over all ranks)",
        "total_batch_size batch_tokens tokens_per_batch",
    ),
    (_IN_TOKENS, "global_batch_size train_batch_size effective_batch_size gbs"),
    ("train.per_device_eval_batch_size={}", "eval_batch_size val_batch_size test_batch_size"),
    (
        "train.num_train_epochs={}",
        "epochs epoch num_epochs num_epoch n_epochs max_epochs train_epochs",
    ),
    (
        "train.max_steps={}",
        "max_iters iters train_iters num_iterations iterations total_steps steps num_steps "
        "train_steps num_train_steps max_train_steps training_steps n_steps max_iterations "
        "max_iter",
    ),
    (
        "train.max_tokens={}",
        "tokens num_tokens target_tokens max_train_tokens train_tokens total_tokens",
    ),
    (
        "train.sequence_length={}",
        "seq_len seq_length sequence_len seqlen context_length context_len ctx_len n_ctx "
        "cutoff_len n_positions max_sequence_length max_sequence_len max_len context_size",
    ),
    ("train.learning_rate={}", "max_lr base_lr peak_lr learningrate max_learning_rate"),
    ("train.optimizer=muon train.muon_learning_rate={}", "matrix_lr muon_lr"),
    (
        "train.lr_scheduler_type=cosine_with_min_lr train.min_lr_ratio=SHARE, of the peak",
        "min_lr min_learning_rate lr_min final_lr lr_end",
    ),
    (_SCHEDULE, "lr_scheduler scheduler lr_schedule lr_decay_style decay_lr schedule"),
    (
        "train.warmup_steps={}",
        "warmup warmup_iters lr_warmup_steps lr_warmup_iters num_warmup_steps warm_up_steps "
        "warmup_fraction",
    ),
    ("train.weight_decay={}", "wd weightdecay"),
    ("train.adam_beta1={}", "beta1"),
    ("train.adam_beta2={}", "beta2"),
    ("train.adam_beta1=0.9 train.adam_beta2=0.95", "betas adam_betas"),
    ("train.adam_epsilon={}", "adam_eps eps epsilon"),
    (
        "train.max_grad_norm={}",
        "grad_clip clip_grad gradient_clipping clip_grad_norm gradient_clip_val max_norm "
        "grad_norm clip",
    ),
    (
        "train.gradient_accumulation_steps={}",
        "grad_accum accumulation_steps grad_accum_steps gradient_accumulation accum_steps "
        "accumulate_grad_batches grad_acc grad_acc_steps accumulation",
    ),
    (
        _ATTENTION,
        "flash_attn flash_attention flash_attention_2 flash_attn_2 flash fa fa2 attn attn_impl "
        "attention",
    ),
    ("--deepspeed {}", "deepspeed_config ds_config deepspeed_json deepspeed_file ds_json ds"),
    ("--deepspeed zero{}", "zero_stage zero"),
    (
        "train.precision=bf16|fp16|fp32",
        "mixed_precision amp fp32 float16 bfloat16 float32 half autocast",
    ),
    (
        "train.eval_steps={}",
        "eval_interval eval_every eval_freq val_interval val_check_interval val_every",
    ),
    ("train.max_eval_tokens=1M", "eval_iters eval_tokens val_tokens limit_val_batches"),
    (
        "train.logging_steps={}",
        "log_interval log_every log_freq log_steps log_every_n_steps print_every",
    ),
    (
        "train.save_steps={}",
        "save_interval save_every save_freq checkpoint_interval checkpoint_every ckpt_interval",
    ),
    (
        "run.dir={}",
        "out_dir outdir save_dir output output_path checkpoint_dir ckpt_dir save_folder save_path",
    ),
    (
        "data.path={}",
        "data_path data_dir dataset dataset_dir dataset_path train_data data_file corpus "
        "train_path train_files input input_file files data_files",
    ),
    ("data.tokenizer={}", "tokenizer_path tokenizer_dir tokenizer_file tokenizer_model vocab_file"),
    ("model.num_hidden_layers={}", "n_layer n_layers num_layers layers depth"),
    ("model.num_attention_heads={}", "n_head n_heads num_heads heads"),
    ("model.num_key_value_heads={}", "n_kv_head n_kv_heads num_kv_heads num_query_groups"),
    ("model.hidden_size={}", "n_embd dim d_model embed_dim hidden width"),
    ("model.intermediate_size={}", "ffn_dim d_ff mlp_dim ffn_hidden_size hidden_dim"),
    ("model.rope_theta={}", "rope_base rotary_base"),
    (
        "model.preset=NAME (`wikillm presets`), or model.init_from=FOLDER to continue from a model",
        "model model_name model_size arch",
    ),
    (
        "--config NAME for a run preset, model.preset=NAME for a model (`wikillm presets`)",
        "preset recipe",
    ),
    (
        _TRACKER,
        "wandb wandb_log wandb_project wandb_run_name wandb_name wandb_entity tensorboard "
        "tensorboard_dir mlflow comet swanlab swanlab_mode track tracker logger",
    ),
    ("observe.swanlab.project={}", "swanlab_project"),
    (
        _CHECKPOINTING,
        "activation_recompute recompute checkpoint_activations activation_checkpoint "
        "grad_checkpointing gradient_checkpoint recompute_activations recompute_granularity",
    ),
    ("train.compile=layers", "torchcompile jit"),
    (
        _PROCESSES,
        "num_gpus n_gpus gpus nproc_per_node world_size num_nodes nnodes nodes ddp n_gpu devices "
        "gpu master_port master_addr",
    ),
    (
        "leave it out: GPUs are used where there are any, else the CPU",
        "device cuda cpu accelerator",
    ),
    (_WORKERS, "num_workers n_workers workers dataloader_workers num_proc"),
    ("run.seed={}", "random_seed manual_seed"),
    (
        _RESUME,
        "resume from_resume resume_from load_checkpoint ckpt ckpt_path restore auto_resume "
        "continue continue_training",
    ),
    (
        "model.init_from=FOLDER",
        "from_weight from_weights pretrained pretrained_model load_weights base_model init_weight",
    ),
    (_PRETRAINS, "finetuning_type template lora lora_rank lora_alpha lora_target sft peft"),
    ("leave it out: WikiLLM pretrains; --deepspeed zero2 chooses the ZeRO stage", "stage"),
    (
        "data.val_fraction={}",
        "val_ratio val_size val_split eval_ratio eval_split test_size validation_split",
    ),
    (
        "train.save_total_limit={}",
        "keep_last max_checkpoints keep_checkpoints keep_last_n max_to_keep",
    ),
    ("leave it out: RUN/metrics.jsonl has every value, and SwanLab shows curves", "plot_loss"),
    ("data.packing=best_fit train.document_mask=on", "neat_packing pack sequence_packing"),
    ("leave it out: the models have no dropout", "dropout attention_dropout hidden_dropout"),
    ("train.ema_decay={}", "ema"),
)
OTHER_NAMES = {name: advice for advice, names in _GROUPS for name in names.split()}
"""Name -> what to write instead; `{}` is the value that was typed."""
_RUN_TOGETHER = {name.replace("_", ""): advice for name, advice in OTHER_NAMES.items()}


def advise(name: str, value: str = "") -> str:
    """What to write instead of an unknown key or flag with this value, or where to look it up."""
    leaf = name.rsplit(".", 1)[-1]
    value = shlex.quote(value) if value else ""
    if leaf in SWITCHES:
        return f"train.precision={leaf}"
    if leaf in ALIASES and name != ALIASES[leaf]:
        return f"{ALIASES[leaf]}={value or '...'}"
    if leaf == "report_to":
        return advise_tracker(value)
    if leaf in ADVICE:
        return ADVICE[leaf]
    same_leaf = [key for key in all_keys() if key.endswith(f".{leaf}")]
    if len(same_leaf) == 1:
        return f"{same_leaf[0]}={value or '...'}"
    if (other := advise_other(leaf, value)) is not None:
        return other
    if leaf in UNSUPPORTED:
        return "leave it out: WikiLLM decides this itself, or does not offer it"
    return _nearest(name, leaf, value) or "`wikillm train --help-all` lists all keys"


def _nearest(name: str, leaf: str, value: str) -> str | None:
    """A dotted name is compared with keys first, a flag with their last parts and with other
    names."""
    dotted = (*all_keys(), *section_names())
    if "." in name and (near := did_you_mean(name, dotted)) is not None:
        return f"did you mean {near}?"
    ours = {key.leaf: key.name for key in all_keys().values()} | ALIASES
    near = did_you_mean(leaf, [*ours, *OTHER_NAMES])
    if near in ours:
        return f"did you mean {ours[near]}?"
    if near is not None:
        return advise_other(near, value)
    near = did_you_mean(name, dotted)
    return f"did you mean {near}?" if near else None


def advise_tracker(value: str) -> str:
    """What to write instead of `--report_to VALUE`."""
    wanted = value.strip("[]'\" ").lower()
    if wanted in ("none", "null", "off", "false", "disabled"):
        return "observe.swanlab.mode=disabled"
    if wanted in ("swanlab", "all", "true"):
        return (
            "observe.swanlab.mode=online "
            "(offline, the default, writes files that `swanlab sync` uploads later)"
        )
    return f"{_TRACKER} ({value} is not supported)" if value else _TRACKER


def advise_other(name: str, value: str) -> str | None:
    """The advice for another trainer's name, in any case and with or without `use_`; None if
    unknown."""
    plain = name.lower().replace("-", "_")
    for prefix in ("use_", "enable_", "with_", ""):
        bare = plain.removeprefix(prefix) if prefix else plain
        advice = OTHER_NAMES.get(bare) or _RUN_TOGETHER.get(bare.replace("_", ""))
        if advice is not None:
            return advice.replace("{}", value or "N")
    return None
