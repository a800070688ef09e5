"""FLOPs per token of a model, and the peak FLOP/s of known GPUs.

    FLOPs/token = 6 N_matmul + 12 L H d T      forward and backward, full attention

This is PaLM's convention (arXiv:2204.02311, appendix B): 2 FLOPs per weight forward, 4 backward;
attention's scores and values over all T positions, although a causal kernel computes half of them;
recomputation is not counted.
"""

from __future__ import annotations

from wikillm.config.schema import ModelSection
from wikillm.plan.params import attention_flops, count_parameters

# Dense peaks in TFLOP/s: bf16 with fp32 accumulation, without sparsity; fp16 for GPUs before
# Ampere. The first entry found in the device's name is used, so longer names come first. Sources:
# NVIDIA's data sheets, which print the figure with sparsity (twice as high) or without; for GeForce
# the appendix of the GA102, Ada and RTX Blackwell white papers, row "FP16 Tensor with FP32
# accumulate".
_PEAK_TFLOPS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.5),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.5),
    ("H200", 989.5),
    ("H800 PCIe", 756.0),
    ("H800", 989.5),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L20", 119.5),
    ("L4", 121.0),
    # RTX PRO 6000 Blackwell Max-Q data sheet: 3511 AI TOPS (FP4, sparse) / 8
    ("RTX PRO 6000 Blackwell Max-Q", 438.9),
    # RTX Blackwell PRO white paper, appendix: 188 SMs at 2617 MHz
    ("RTX PRO 6000", 503.8),
    # RTX 6000 Ada data sheet: 1457 TFLOPS (FP8, sparse) / 4
    ("RTX 6000 Ada", 364.2),
    # RTX A6000 data sheet: 309.7 TFLOPS with sparsity
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090 D", 147.0),
    ("RTX 4090", 165.2),
    ("RTX 3090 Ti", 80.0),
    ("RTX 3090", 71.0),
    ("V100-PCIE", 112.0),
    ("V100", 125.0),
    ("T4", 65.0),
    # AMD Instinct MI300X data sheet: peak bf16 without sparsity
    ("MI300X", 1307.4),
    # Huawei Atlas 800T A2 server: 2.5 PFLOPS fp16 of 8 processors
    ("Ascend 910B", 313.0),
)


def flops_per_token(model: ModelSection, vocab_size: int, sequence_length: int) -> int:
    """Model FLOPs per trained token, forward and backward."""
    matmul = count_parameters(model, vocab_size).matmul
    return 6 * matmul + attention_flops(model, sequence_length)


def peak_flops(device_name: str) -> float | None:
    """Dense 16-bit peak in FLOP/s of a GPU by its driver's name; None for an unknown GPU."""
    words = f" {device_name.replace('GeForce ', '')}"
    for name, tflops in _PEAK_TFLOPS:
        # Match whole words only: "L4" must not match "GL4", nor "A10" match "A100".
        start = words.find(f" {name}") if f" {name}" in words else words.find(f"-{name}")
        end = start + 1 + len(name)
        if start >= 0 and not words[end : end + 1].isalnum():
            return tflops * 1e12
    return None
