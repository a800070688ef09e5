"""Every key DeepSpeed 0.19 reads from its JSON, with its kind, and the keys it no longer reads.

DeepSpeed itself refuses a misspelled key only inside the blocks it parses with pydantic, and there
only after the model exists; a misspelled key at the top level is ignored in silence. These tables
let the check run offline, without importing DeepSpeed. `tests/unit/config/test_deepspeed_keys.py`
compares them with the installed DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """What JSON value a key takes."""

    BOOL = "true or false"
    INT = "a whole number"
    NUMBER = "a number"
    TEXT = "a string"
    LIST = "a list"
    BLOCK = "a block { }"
    ANY = "any value"


B, I, N, T, L, D, A = Kind.BOOL, Kind.INT, Kind.NUMBER, Kind.TEXT, Kind.LIST, Kind.BLOCK, Kind.ANY  # noqa: E741

TOP_LEVEL: Mapping[str, Kind] = {
    "activation_checkpointing": D, "aio": D, "autotuning": D, "bf16": D, "checkpoint": D, "comet": D,
    "comms_logger": D, "communication_data_type": T, "compile": D, "csv_monitor": D, "data_efficiency": D,
    "data_types": D, "dataloader_drop_last": B, "datastates_ckpt": A, "disable_allgather": B, "disable_python_gc": B,
    "dump_state": B, "expert_parallel": D, "flops_profiler": D, "fp16": D, "gradient_accumulation_steps": I,
    "gradient_allreduce_op": T, "gradient_clipping": N, "gradient_predivide_factor": N, "hybrid_engine": D,
    "log_level": A, "managed_gradient_accumulation": B, "memory_breakdown": B, "optimizer": D, "pipeline": D,
    "prescale_gradients": B, "scheduler": D, "seq_parallel_communication_data_type": T, "sequence_parallel_size": I,
    "steps_per_print": N, "tensor_parallel": D, "tensorboard": D, "timers": D, "torch_autocast": D,
    "train_batch_size": I, "train_micro_batch_size_per_gpu": I, "use_data_before_expert_parallelism": B,
    "vocabulary_size": I, "wall_clock_breakdown": B, "wandb": D, "weight_quantization": D,
    "zero_allow_untested_optimizer": B, "zero_force_ds_cpu_optimizer": B, "zero_optimization": D,
}  # fmt: skip

BLOCKS: Mapping[str, Mapping[str, Kind]] = {
    "zero_optimization": {
        "stage": I, "contiguous_gradients": B, "reduce_scatter": B, "reduce_bucket_size": N,
        "use_multi_rank_bucket_allreduce": B, "allgather_partitions": B, "allgather_bucket_size": N, "overlap_comm": B,
        "compute_grad_norm": B, "load_from_fp32_weights": B, "elastic_checkpoint": B, "offload_param": D,
        "offload_optimizer": D, "zenflow": D, "sub_group_size": N, "stage3_prefetch_bucket_size": N,
        "stage3_param_persistence_threshold": N, "stage3_model_persistence_threshold": N,
        "stage3_max_live_parameters": N, "stage3_max_reuse_distance": N,
        "stage3_gather_16bit_weights_on_model_save": B, "stage3_module_granularity_threshold": N,
        "stage3_use_all_reduce_for_fetch_params": B, "stage3_allgather_sequential": B, "ignore_unused_parameters": B,
        "round_robin_gradients": B, "parameter_alignment": B, "zero_hpz_partition_size": I,
        "zero_quantized_weights": B, "zero_quantized_nontrainable_weights": B, "zero_quantized_gradients": B,
        "memory_efficient_linear": B, "pipeline_loading_checkpoint": B, "override_module_apply": B,
        "log_trace_cache_warnings": B, "enable_sanity_checks": B, "save_muon_momentum_buffer_in_memory": B,
        "leaf_module": D,
    },
    "zero_optimization.offload_param": {
        "device": T, "nvme_path": T, "buffer_count": I, "buffer_size": N, "max_in_cpu": N, "pin_memory": B,
    },
    "zero_optimization.offload_optimizer": {
        "device": T, "nvme_path": T, "buffer_count": I, "pin_memory": B, "pipeline_read": B, "pipeline_write": B,
        "fast_init": B, "ratio": N, "super_offload": B, "cpuadam_cores_perc": N,
    },
    "zero_optimization.leaf_module": {"classes": L, "names": L, "name_suffixes": L},
    "bf16": {
        "enabled": B, "immediate_grad_update": B, "check_grad_overflow": B, "bf16_master_weights_and_grads": B,
        "bf16_optimizer_states": B,
    },
    "fp16": {
        "enabled": B, "auto_cast": B, "loss_scale": N, "initial_scale_power": I, "loss_scale_window": I,
        "hysteresis": I, "consecutive_hysteresis": B, "min_loss_scale": I, "fp16_master_weights_and_grads": B,
    },
    "optimizer": {"type": T, "params": D, "legacy_fusion": B},
    "torch_autocast": {"enabled": B, "dtype": T, "lower_precision_safe_modules": L},
    "data_types": {"grad_accum_dtype": T, "param_dtype": T, "buffer_dtype": T, "keep_in_fp32_modules": A},
    "checkpoint": {
        "tag_validation": T, "load_universal": B, "use_node_local_storage": B, "parallel_write": D,
        "checkpoint_serialization": B, "writer": D,
    },
    "timers": {"throughput": D},
    "timers.throughput": {"enabled": B, "synchronized": B},
    "comms_logger": {"enabled": B, "prof_all": B, "prof_ops": L, "verbose": B, "debug": B},
    "flops_profiler": {
        "enabled": B, "recompute_fwd_factor": N, "profile_step": I, "module_depth": I, "top_modules": I,
        "detailed": B, "output_file": A,
    },
    "aio": {
        "block_size": I, "queue_depth": I, "intra_op_parallelism": I, "single_submit": B, "overlap_events": B,
        "use_gds": B,
    },
    "tensorboard": {"enabled": B, "output_path": T, "job_name": T},
    "csv_monitor": {"enabled": B, "output_path": T, "job_name": T},
    "wandb": {"enabled": B, "group": T, "team": T, "project": T},
    "compile": {
        "deepcompile": B, "autoep_non_moe": B, "free_activation": B, "free_activation_threshold": I,
        "offload_activation": B, "offload_activation_pin_memory": B, "offload_opt_states": B, "double_buffer": B,
        "symmetric_memory": B, "debug_log": B, "offload_parameters": B, "sync_before_reduce": B,
        "sync_after_reduce": B, "sync_before_allgather": B, "sync_after_allgather": B, "keep_int_input_tensors": B,
        "keep_all_input_tensors": B, "passes": L,
    },
}  # fmt: skip
"""Blocks whose keys are all known, by dotted path. The keys of other blocks are left to
DeepSpeed."""

AT_LEAST_ONE = frozenset(
    {
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
        "steps_per_print", "zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size",
        "zero_optimization.sub_group_size", "zero_optimization.zero_hpz_partition_size", "fp16.loss_scale_window",
        "flops_profiler.profile_step", "aio.block_size", "aio.queue_depth", "aio.intra_op_parallelism",
    }
)  # fmt: skip
"""Whole numbers that 0 makes no sense for. No other number may be negative, but for those in
MAY_BE_NEGATIVE."""
MAY_BE_NEGATIVE = frozenset({"flops_profiler.module_depth"})
FRACTIONS = frozenset(
    {
        "zero_optimization.offload_optimizer.ratio",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc",
    }
)
"""The only numbers of zero_optimization that need not be whole; from 0 to 1."""
LARGEST: Mapping[str, int] = {"fp16.initial_scale_power": 127, **dict.fromkeys(FRACTIONS, 1)}
"""2^128 is beyond float32."""
_TYPES = ("fp16", "bf16", "fp32")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "communication_data_type": _TYPES,
    "seq_parallel_communication_data_type": _TYPES,
    "data_types.grad_accum_dtype": _TYPES,
    "checkpoint.tag_validation": ("ignore", "warn", "fail"),
}
"""Strings that DeepSpeed compares in lower case, with the ones that it knows."""

HIDDEN_SIZE_KEYS = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)
"""Keys of zero_optimization that Hugging Face derives from the hidden size when they are "auto"."""

AUTO = frozenset(
    {
        "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping",
        "bf16.enabled", "fp16.enabled", "optimizer.params.lr", "optimizer.params.betas", "optimizer.params.eps",
        "optimizer.params.weight_decay", "zero_optimization.zero_hpz_partition_size",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        *(f"zero_optimization.{key}" for key in HIDDEN_SIZE_KEYS),
    }
)  # fmt: skip
"""Where "auto" may stand. Anywhere else accelerate raises, or DeepSpeed takes its default in
silence."""

_BATCH = "set the batch in train.*: accumulation is derived for the world at hand"
REMOVED: Mapping[str, str] = {
    "amp": 'remove it; train.precision=bf16 or fp16 takes its place ("bf16" and "fp16" blocks with "enabled": "auto")',
    "bfloat16": 'write "bf16": Hugging Face and accelerate look only for that name',
    "compression_training": "remove it: DeepSpeed no longer compresses; quantise the exported model instead",
    "curriculum_learning": "remove it: the order of the data is decided when the token store is built",
    "eigenvalue": "remove it: it served only the removed mixture of quantisation",
    "elasticity": f"remove it; {_BATCH}",
    "graph_harvesting": "remove it",
    "nebula": "remove it: WikiLLM writes complete, checked checkpoints itself",
    "progressive_layer_drop": "remove it: all layers are trained at every step",
    "quantize_training": "remove it; quantise the exported model instead",
    "sparse_attention": "remove it; model.attn_implementation chooses the attention kernel",
    "sparse_gradients": "remove it: embedding gradients are dense",
    "zero_optimization.mics_shard_size": 'remove it; "zero_hpz_partition_size": "auto" keeps a copy of the weights per node',
    "zero_optimization.mics_hierarchical_params_gather": "remove it, like mics_shard_size",
    "zero_optimization.zeropp_loco_param": "remove it: qgZ runs without LoCo's error feedback",
    "zero_optimization.cpu_offload": 'write "offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'write "offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": 'write "pin_memory" inside offload_optimizer or offload_param',
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        'write "stage3_gather_16bit_weights_on_model_save"'
    ),
    "zero_optimization.legacy_stage1": "remove it: the old stage 1 is gone",
    **{
        f"zero_optimization.{key}": f'write "stage3_{key}": Hugging Face looks only for that name'
        for key in (
            "prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold",
            "max_live_parameters", "max_reuse_distance", "gather_16bit_weights_on_model_save",
            "module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential",
        )
    },
}  # fmt: skip
"""Keys DeepSpeed or Hugging Face no longer read (or not under this name), and what to write
instead."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "activation_checkpointing": "Hugging Face models do not call DeepSpeed's checkpointing; use train.gradient_checkpointing=true",
    "autotuning": "the autotuner starts scripts of its own; compare settings with `wikillm plan` instead",
    "data_efficiency": "it needs DeepSpeed's data loader, and the data come from the token store",
    "dataloader_drop_last": "it needs DeepSpeed's data loader, and the data come from the token store",
    "expert_parallel": "the models here have no experts",
    "hybrid_engine": "it serves reinforcement learning, not pretraining",
    "pipeline": "it needs a PipelineModule, and Hugging Face models are none",
    "sequence_parallel_size": "sequences are shared without it; use train.sequence_parallel_size=N",
    "use_data_before_expert_parallelism": "the models here have no experts",
    "weight_quantization": "it belongs to inference",
}
"""Blocks that DeepSpeed reads and this toolkit cannot honour; refused unless they are off."""

_TRACK = "observe.swanlab.mode=online (or local, offline)"
TRACKERS: Mapping[str, str] = {
    "comet": f"{_TRACK} observe.swanlab.project=NAME observe.swanlab.workspace=TEAM",
    "csv_monitor": "every value is a line of RUN/metrics.jsonl, whose folder run.dir sets",
    "tensorboard": f"{_TRACK} shows curves; run.dir is the folder of metrics.jsonl and logs/",
    "wandb": f"{_TRACK} observe.swanlab.project=NAME observe.swanlab.workspace=TEAM",
}
"""Monitors that DeepSpeed would feed beside WikiLLM's own, and the keys that do their work."""

UNEXPLAINED: Mapping[str, str] = {
    "tensor_parallel": "AutoTP",
    "zero_optimization.zenflow": "ZenFlow",
}
"""Features that run, but whose first losses differ from plain ZeRO for reasons not yet found;
refused until then."""

CUDA_ONLY: Mapping[str, str] = {
    "zero_optimization.zero_hpz_partition_size": "hpZ",
    "zero_optimization.zero_quantized_weights": "qwZ",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantised frozen weights",
    "zero_optimization.zero_quantized_gradients": "qgZ",
    "zero_optimization.offload_optimizer.super_offload": "SuperOffload",
}
"""Features whose kernels exist for GPUs only; refused on CPU, and all of them need ZeRO stage 3."""
