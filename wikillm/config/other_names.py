"""Names that other trainers have for what is here: nanoGPT, nanochat, minimind, LLaMA-Factory, Megatron, Lightning, torchtitan.

`OTHER_NAMES` maps each to what to write instead; `{}` is the value that was typed. None of them is accepted as a key: their
units differ (a batch in sequences or in tokens, per rank or in all), so the answer says what is meant here.
"""

from __future__ import annotations

_TRACKER = (
    "SwanLab is the only tracker: observe.swanlab.mode=online|offline|local|disabled; "
    "RUN/metrics.jsonl has every value as well"
)
_MICRO = "train.per_device_train_batch_size={} (sequences per rank and micro-step; train.global_batch_tokens is the whole batch)"
_IN_TOKENS = "train.global_batch_tokens=N, in tokens: {} sequences x train.sequence_length"
_ATTENTION = "model.attn_implementation=flash_attention_2 (sdpa is the default)"
_PROCESSES = (
    "the launcher decides it: deepspeed --num_gpus N train.py, torchrun --nproc_per_node N train.py, "
    "or `wikillm launch multi --gpus N`"
)
_RESUME = "`wikillm train --resume auto`, or `--resume CHECKPOINT`"
_PRETRAINS = "leave it out: WikiLLM pretrains; it has no fine-tuning"
_CHECKPOINTING = "train.gradient_checkpointing=full (or selective, none)"
_WORKERS = "train.dataloader_num_workers={} (loader processes per rank), or data.workers={} (that build the token store)"
_SCHEDULE = "train.lr_scheduler_type=cosine|cosine_with_min_lr|linear|constant|constant_with_warmup|warmup_stable_decay"

_GROUPS: tuple[tuple[str, str], ...] = (
    (_MICRO, "batch_size micro_batch_size device_batch_size per_device_batch_size mini_batch_size micro_batch local_batch_size"),
    (_MICRO, "train_micro_batch_size_per_gpu batch_size_per_gpu per_gpu_batch_size bs mbs"),
    ("train.global_batch_tokens={} (tokens per optimizer step over all ranks)", "total_batch_size batch_tokens tokens_per_batch"),
    (_IN_TOKENS, "global_batch_size train_batch_size effective_batch_size gbs"),
    ("train.per_device_eval_batch_size={}", "eval_batch_size val_batch_size test_batch_size"),
    ("train.num_train_epochs={}", "epochs epoch num_epochs num_epoch n_epochs max_epochs train_epochs"),
    ("train.max_steps={}", "max_iters iters train_iters num_iterations iterations total_steps steps num_steps train_steps"),
    ("train.max_steps={}", "num_train_steps max_train_steps training_steps n_steps max_iterations max_iter"),
    ("train.max_tokens={}", "tokens num_tokens target_tokens max_train_tokens train_tokens total_tokens"),
    ("train.sequence_length={}", "seq_len seq_length sequence_len seqlen context_length context_len ctx_len n_ctx cutoff_len"),
    ("train.sequence_length={}", "n_positions max_sequence_length max_sequence_len max_len context_size"),
    ("train.learning_rate={}", "max_lr base_lr peak_lr learningrate max_learning_rate"),
    ("train.optimizer=muon train.muon_learning_rate={}", "matrix_lr muon_lr"),
    (
        "train.lr_scheduler_type=cosine_with_min_lr train.min_lr_ratio=SHARE, of the peak",
        "min_lr min_learning_rate lr_min final_lr lr_end",
    ),
    (_SCHEDULE, "lr_scheduler scheduler lr_schedule lr_decay_style decay_lr schedule"),
    ("train.warmup_steps={}", "warmup warmup_iters lr_warmup_steps lr_warmup_iters num_warmup_steps warm_up_steps warmup_fraction"),
    ("train.weight_decay={}", "wd weightdecay"),
    ("train.adam_beta1={}", "beta1"),
    ("train.adam_beta2={}", "beta2"),
    ("train.adam_beta1=0.9 train.adam_beta2=0.95", "betas adam_betas"),
    ("train.adam_epsilon={}", "adam_eps eps epsilon"),
    ("train.max_grad_norm={}", "grad_clip clip_grad gradient_clipping clip_grad_norm gradient_clip_val max_norm grad_norm clip"),
    ("train.gradient_accumulation_steps={}", "grad_accum accumulation_steps grad_accum_steps gradient_accumulation accum_steps"),
    ("train.gradient_accumulation_steps={}", "accumulate_grad_batches grad_acc grad_acc_steps accumulation"),
    (_ATTENTION, "flash_attn flash_attention flash_attention_2 flash_attn_2 flash fa fa2 attn attn_impl attention"),
    ("--deepspeed {}", "deepspeed_config ds_config deepspeed_json deepspeed_file ds_json ds"),
    ("--deepspeed zero{}", "zero_stage zero"),
    ("train.precision=bf16|fp16|fp32", "mixed_precision amp fp32 float16 bfloat16 float32 half autocast"),
    ("train.eval_steps={}", "eval_interval eval_every eval_freq val_interval val_check_interval val_every"),
    ("train.max_eval_tokens=1M", "eval_iters eval_tokens val_tokens limit_val_batches"),
    ("train.logging_steps={}", "log_interval log_every log_freq log_steps log_every_n_steps print_every"),
    ("train.save_steps={}", "save_interval save_every save_freq checkpoint_interval checkpoint_every ckpt_interval"),
    ("run.dir={}", "out_dir outdir save_dir output output_path checkpoint_dir ckpt_dir save_folder save_path"),
    ("data.path={}", "data_path data_dir dataset dataset_dir dataset_path train_data data_file corpus train_path train_files"),
    ("data.path={}", "input input_file files data_files"),
    ("data.tokenizer={}", "tokenizer_path tokenizer_dir tokenizer_file tokenizer_model vocab_file"),
    ("model.num_hidden_layers={}", "n_layer n_layers num_layers layers depth"),
    ("model.num_attention_heads={}", "n_head n_heads num_heads heads"),
    ("model.num_key_value_heads={}", "n_kv_head n_kv_heads num_kv_heads num_query_groups"),
    ("model.hidden_size={}", "n_embd dim d_model embed_dim hidden width"),
    ("model.intermediate_size={}", "ffn_dim d_ff mlp_dim ffn_hidden_size hidden_dim"),
    ("model.rope_theta={}", "rope_base rotary_base"),
    ("model.preset=NAME (`wikillm presets`), or model.init_from=FOLDER to continue from a model", "model model_name model_size arch"),
    ("--config NAME for a run preset, model.preset=NAME for a model (`wikillm presets`)", "preset recipe"),
    (_TRACKER, "wandb wandb_log wandb_project wandb_run_name wandb_name wandb_entity tensorboard tensorboard_dir mlflow comet"),
    (_TRACKER, "swanlab swanlab_mode track tracker logger"),
    ("observe.swanlab.project={}", "swanlab_project"),
    (_CHECKPOINTING, "activation_recompute recompute checkpoint_activations activation_checkpoint grad_checkpointing"),
    (_CHECKPOINTING, "gradient_checkpoint recompute_activations recompute_granularity"),
    ("train.compile=layers", "torchcompile jit"),
    (_PROCESSES, "num_gpus n_gpus gpus nproc_per_node world_size num_nodes nnodes nodes ddp n_gpu devices gpu master_port master_addr"),
    ("leave it out: GPUs are used where there are any, else the CPU", "device cuda cpu accelerator"),
    (_WORKERS, "num_workers n_workers workers dataloader_workers num_proc"),
    ("run.seed={}", "random_seed manual_seed"),
    (_RESUME, "resume from_resume resume_from load_checkpoint ckpt ckpt_path restore auto_resume continue continue_training"),
    ("model.init_from=FOLDER", "from_weight from_weights pretrained pretrained_model load_weights base_model init_weight"),
    (_PRETRAINS, "finetuning_type template lora lora_rank lora_alpha lora_target sft peft"),
    ("leave it out: WikiLLM pretrains; --deepspeed zero2 chooses the ZeRO stage", "stage"),
    ("data.val_fraction={}", "val_ratio val_size val_split eval_ratio eval_split test_size validation_split"),
    ("train.save_total_limit={}", "keep_last max_checkpoints keep_checkpoints keep_last_n max_to_keep"),
    ("leave it out: RUN/metrics.jsonl has every value, and SwanLab shows curves", "plot_loss"),
    ("data.packing=best_fit train.document_mask=on", "neat_packing pack sequence_packing"),
    ("leave it out: the models have no dropout", "dropout attention_dropout hidden_dropout"),
    ("train.ema_decay={}", "ema"),
)  # fmt: skip
OTHER_NAMES: dict[str, str] = {name: advice for advice, names in _GROUPS for name in names.split()}

_NO_TRACKER, _OURS = ("none", "null", "off", "false", "disabled"), ("swanlab", "all", "true")


def advise_tracker(value: str) -> str:
    """What to write instead of `--report_to VALUE`."""
    wanted = value.strip("[]'\" ").lower()
    if wanted in _NO_TRACKER:
        return "observe.swanlab.mode=disabled"
    if wanted in _OURS:
        return "observe.swanlab.mode=online (offline, the default, writes files that `swanlab sync` uploads later)"
    return f"{_TRACKER} ({value} is not supported)" if value else _TRACKER


def advise_other(name: str, value: str) -> str | None:
    """The advice for another trainer's name, in any case, with `use_`, `no_` or `enable_` before it; None for an unknown one."""
    plain = name.lower().replace("-", "_")
    for prefix in ("use_", "enable_", "with_", ""):
        bare = plain.removeprefix(prefix) if prefix else plain
        advice = OTHER_NAMES.get(bare) or _RUN_TOGETHER.get(bare.replace("_", ""))
        if advice is not None:
            return advice.replace("{}", value or "N")
    return None


_RUN_TOGETHER = {name.replace("_", ""): advice for name, advice in OTHER_NAMES.items()}
