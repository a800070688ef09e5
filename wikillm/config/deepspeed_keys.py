"""Every key that DeepSpeed 0.19 reads from its JSON, with its type, and the keys to refuse.

DeepSpeed refuses a misspelled key only in the blocks that it parses with pydantic, and only after
the model exists; it ignores a misspelled key at the top level. These tables allow a check without
importing DeepSpeed (`tests/unit/config/test_deepspeed_keys.py` compares them with the installed
version).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """The type of JSON value that a key takes."""

    BOOL = "true or false"
    INT = "a whole number"
    NUMBER = "a number"
    TEXT = "a string"
    LIST = "a list"
    BLOCK = "a block { }"
    ANY = "any value"


def _keys(**names: str) -> dict[str, Kind]:
    """`_keys(bool="a b", int="c")` is {"a": Kind.BOOL, "b": Kind.BOOL, "c": Kind.INT}."""
    return {key: Kind[kind.upper()] for kind, text in names.items() for key in text.split()}


TOP_LEVEL: Mapping[str, Kind] = _keys(
    block="activation_checkpointing aio autotuning bf16 checkpoint comet comms_logger compile "
    "csv_monitor data_efficiency data_types expert_parallel flops_profiler fp16 hybrid_engine "
    "optimizer pipeline scheduler tensor_parallel tensorboard timers torch_autocast wandb "
    "weight_quantization zero_optimization",
    text="communication_data_type gradient_allreduce_op seq_parallel_communication_data_type",
    bool="dataloader_drop_last disable_allgather disable_python_gc dump_state "
    "managed_gradient_accumulation memory_breakdown prescale_gradients "
    "use_data_before_expert_parallelism wall_clock_breakdown zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer",
    any="datastates_ckpt log_level",
    int="gradient_accumulation_steps sequence_parallel_size train_batch_size "
    "train_micro_batch_size_per_gpu vocabulary_size",
    number="gradient_clipping gradient_predivide_factor steps_per_print",
)

BLOCKS: Mapping[str, Mapping[str, Kind]] = {
    "zero_optimization": _keys(
        int="stage zero_hpz_partition_size reduce_bucket_size allgather_bucket_size "
        "sub_group_size stage3_prefetch_bucket_size stage3_param_persistence_threshold "
        "stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance "
        "stage3_module_granularity_threshold",
        bool="contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce "
        "allgather_partitions "
        "overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint "
        "stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
        "stage3_allgather_sequential ignore_unused_parameters round_robin_gradients "
        "parameter_alignment zero_quantized_weights zero_quantized_nontrainable_weights "
        "zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint "
        "override_module_apply log_trace_cache_warnings enable_sanity_checks "
        "save_muon_momentum_buffer_in_memory",
        block="offload_param offload_optimizer zenflow leaf_module",
    ),
    "zero_optimization.offload_param": _keys(
        text="device nvme_path",
        int="buffer_count buffer_size max_in_cpu",
        bool="pin_memory",
    ),
    "zero_optimization.offload_optimizer": _keys(
        text="device nvme_path",
        int="buffer_count",
        bool="pin_memory pipeline_read pipeline_write fast_init super_offload",
        number="ratio cpuadam_cores_perc",
    ),
    "zero_optimization.leaf_module": _keys(list="classes names name_suffixes"),
    "bf16": _keys(
        bool="enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads "
        "bf16_optimizer_states"
    ),
    "fp16": _keys(
        bool="enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads",
        number="loss_scale",
        int="initial_scale_power loss_scale_window hysteresis min_loss_scale",
    ),
    "optimizer": _keys(text="type", block="params", bool="legacy_fusion"),
    "optimizer.params": _keys(
        number="lr eps weight_decay momentum",
        list="betas",
        bool="adam_w_mode amsgrad bias_correction fp32_optimizer_states set_grad_none torch_adam",
    ),
    "torch_autocast": _keys(bool="enabled", text="dtype", list="lower_precision_safe_modules"),
    "data_types": _keys(
        text="grad_accum_dtype param_dtype buffer_dtype", any="keep_in_fp32_modules"
    ),
    "checkpoint": _keys(
        text="tag_validation",
        bool="load_universal use_node_local_storage checkpoint_serialization",
        block="parallel_write writer",
    ),
    "timers": _keys(block="throughput"),
    "timers.throughput": _keys(bool="enabled synchronized"),
    "comms_logger": _keys(bool="enabled prof_all verbose debug", list="prof_ops"),
    "flops_profiler": _keys(
        bool="enabled detailed",
        number="recompute_fwd_factor",
        int="profile_step module_depth top_modules",
        any="output_file",
    ),
    "aio": _keys(
        int="block_size queue_depth intra_op_parallelism",
        bool="single_submit overlap_events use_gds",
    ),
    "tensorboard": _keys(bool="enabled", text="output_path job_name"),
    "csv_monitor": _keys(bool="enabled", text="output_path job_name"),
    "wandb": _keys(bool="enabled", text="group team project"),
    "compile": _keys(
        bool="deepcompile autoep_non_moe free_activation offload_activation "
        "offload_activation_pin_memory offload_opt_states double_buffer symmetric_memory "
        "debug_log offload_parameters sync_before_reduce sync_after_reduce sync_before_allgather "
        "sync_after_allgather keep_int_input_tensors keep_all_input_tensors",
        int="free_activation_threshold",
        list="passes",
    ),
}
"""Blocks whose keys are all known, by dotted path. DeepSpeed checks the keys of other blocks."""

_SIZES = (
    "allgather_bucket_size",
    "reduce_bucket_size",
    "sub_group_size",
    "zero_hpz_partition_size",
)
RANGES: Mapping[str, tuple[float, float]] = {
    "fp16.initial_scale_power": (0, 127),  # 2^128 is beyond float32
    "flops_profiler.module_depth": (-1, math.inf),
    "gradient_predivide_factor": (1e-6, math.inf),
    "zero_optimization.offload_optimizer.ratio": (0, 1),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": (0, 1),
    **dict.fromkeys(
        (
            *(f"aio.{key}" for key in ("block_size", "intra_op_parallelism", "queue_depth")),
            *("flops_profiler.profile_step", "fp16.loss_scale_window", "steps_per_print"),
            *("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu"),
            *(f"zero_optimization.{key}" for key in _SIZES),
        ),
        (1, math.inf),
    ),
}
"""(smallest, largest) legal value of a number. Numbers not listed here start at 0, without an
upper limit."""
_TYPES = ("fp16", "bf16", "fp32")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "communication_data_type": _TYPES,
    "seq_parallel_communication_data_type": _TYPES,
    "data_types.grad_accum_dtype": _TYPES,
    "torch_autocast.dtype": ("bfloat16", "bf16", "float16", "fp16", "half"),
    "checkpoint.tag_validation": ("ignore", "warn", "fail"),
    "gradient_allreduce_op": ("mean",),  # a sum depends on the number of ranks
}
"""Keys with a fixed set of strings, which DeepSpeed compares in lower case."""

AUTO = frozenset(
    [
        "bf16.enabled",
        "fp16.enabled",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer.params.betas",
        "optimizer.params.eps",
        "optimizer.params.lr",
        "optimizer.params.weight_decay",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.stage3_param_persistence_threshold",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.zero_hpz_partition_size",
    ]
)
"""Keys for which "auto" works. At any other key, accelerate raises an error or DeepSpeed silently
uses its default."""

_OFFLOAD = 'write "{}": {{"device": "cpu", "pin_memory": true}}'
INSTEAD: Mapping[str, str] = {
    "amp": "remove it; use train.precision=bf16 or fp16",
    "bfloat16": 'write "bf16": Hugging Face and accelerate read only that name',
    "curriculum_learning": "remove it: the token store decides the order of the data",
    "elasticity": "remove it; set the batch in train.*: accumulation is derived from the ranks",
    "nebula": "remove it: WikiLLM writes complete, checked checkpoints itself",
    "sparse_attention": "remove it; model.attn_implementation chooses the attention kernel",
    "zero_optimization.mics_shard_size": (
        'remove it; "zero_hpz_partition_size": "auto" keeps a copy of the weights per node'
    ),
    "zero_optimization.cpu_offload": _OFFLOAD.format("offload_optimizer"),
    "zero_optimization.cpu_offload_param": _OFFLOAD.format("offload_param"),
}
"""Keys that are refused as unknown, and what to write instead."""

_LOADER = "DeepSpeed's data loader is not used"
_AVERAGED = "ZeRO averages the gradients over the ranks in one step"
_NO_EXPERTS = "the models here have no experts"
_TRACK = "metrics go to SwanLab and metrics.jsonl: observe.swanlab.mode=online (or local, offline)"
_PROJECT = f"{_TRACK} observe.swanlab.project=NAME observe.swanlab.workspace=TEAM"
_UNEXPLAINED = "its first losses differ from plain ZeRO, for a reason not yet known"
NOT_USED: Mapping[str, str] = {
    "activation_checkpointing": "use train.gradient_checkpointing=full",
    "autotuning": "the autotuner starts its own scripts; use `wikillm plan`",
    "comet": _PROJECT,
    "csv_monitor": "RUN/metrics.jsonl has every value; run.dir sets the folder RUN",
    "data_efficiency": _LOADER,
    "dataloader_drop_last": _LOADER,
    "datastates_ckpt": "WikiLLM writes complete, checked checkpoints itself",
    "expert_parallel": _NO_EXPERTS,
    "gradient_predivide_factor": _AVERAGED,
    "hybrid_engine": "it serves reinforcement learning, not pretraining",
    "pipeline": "a Hugging Face model is not a PipelineModule",
    "prescale_gradients": _AVERAGED,
    "scheduler": (
        "the schedule is Hugging Face's: train.lr_scheduler_type=cosine|linear|constant_with_warmup"
        " train.warmup_steps=N"
    ),
    "sequence_parallel_size": "use train.sequence_parallel_size=N",
    "tensor_parallel": _UNEXPLAINED,
    "tensorboard": _TRACK,
    "use_data_before_expert_parallelism": _NO_EXPERTS,
    "wandb": _PROJECT,
    "weight_quantization": "it is for inference",
    "zero_optimization.zenflow": _UNEXPLAINED,
}
"""Keys that have no effect or do not work in WikiLLM, each with the reason or with the setting to
use. They are refused unless they are off."""

ZERO3_CUDA_FEATURES: Mapping[str, str] = {
    "zero_optimization.zero_hpz_partition_size": "hpZ",
    "zero_optimization.zero_quantized_weights": "qwZ",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantised frozen weights",
    "zero_optimization.zero_quantized_gradients": "qgZ",
}
"""Features with kernels for GPUs only. All of them need ZeRO stage 3."""
