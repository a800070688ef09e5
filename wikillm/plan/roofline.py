"""The MFU that a plan assumes for a GPU unless the user gives one, by a roofline model.

    seconds per token = products / rate + attention / rate + bytes moved / memory bandwidth

    products    6 N_matmul FLOPs at the share of the peak that training sustains
    attention   6 L H d T FLOPs: a causal kernel computes half of the positions that MFU counts
    bytes       9 times what a layer keeps for its backward pass (`memory`): written and read in
                the forward pass, read in the backward pass, and gradients and temporaries of
                kernels that are not fused; and for each logit what the loss reads and writes

The products' shares (one per GPU generation) and the factor 9 are fitted together to the 151 rows
of benchmarks/published.csv with T <= 4096; docs/scaling.md has the errors. The shares for attention
are FlashAttention-2's (arXiv:2307.08691): 335 TFLOP/s on an H100, 50 to 73 % of an A100's peak.
WikiLLM has measured nothing on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

from wikillm.plan.gpus import Gpu
from wikillm.plan.memory import kept_by_layer
from wikillm.plan.params import attention_flops
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload

CPU_MFU = 0.5
"""Assumed speed of fp32 training on a CPU, as a share of the measured products' speed."""
PASSES = 9.0
"""How often a byte that a layer keeps moves between a GPU's memory and its processors."""
LOGIT_BYTES = {"stock": 34, "chunked": 18, "fp8": 18}
"""Bytes read and written per logit in 16 bit. Stock: the logits and their two products, the fp32
copy, log-softmax, and the gradients of each. Chunked: logits, fp32 softmax, and its narrow copy."""
_A100 = ("a100", "a100-40gb", "a100-pcie", "a800")
PRODUCT_SHARE = dict.fromkeys(_A100, 0.76)
ATTENTION_SHARE = dict.fromkeys(_A100, 0.55)
"""Shares of the peak by GPU. Other GPUs get Hopper's shares, which are limited by power."""
HOPPER_PRODUCTS = 0.60
HOPPER_ATTENTION = 0.34
USUAL_BALANCE = 250.0
"""Peak FLOP/s per byte/s of memory bandwidth, assumed for a GPU whose bandwidth is not known."""


def default_mfu(workload: Workload, strategy: Strategy, gpu: Gpu) -> float:
    """The model's FLOPs per token / (seconds per token x peak), without any recomputation."""
    if gpu.device == "cpu":
        return CPU_MFU
    attention = attention_flops(workload.model, workload.sequence_length)
    products = workload.flops_per_token - attention
    whole = replace(strategy, tiled_mlp=False)  # a tiled MLP keeps fewer bytes, but moves as many
    layers = workload.model.num_hidden_layers * kept_by_layer(workload, whole)
    width = strategy.bytes_per_weight // 2
    logits = workload.vocab_size * LOGIT_BYTES[strategy.loss] * width
    bandwidth = gpu.memory_bandwidth or gpu.peak / USUAL_BALANCE
    seconds = (
        products / (PRODUCT_SHARE.get(gpu.name, HOPPER_PRODUCTS) * gpu.peak)
        + attention / 2 / (ATTENTION_SHARE.get(gpu.name, HOPPER_ATTENTION) * gpu.peak)
        + (PASSES * layers + logits) / bandwidth
    )
    return workload.flops_per_token / (seconds * gpu.peak)
