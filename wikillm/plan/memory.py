"""Memory of one rank by part, by formula: for GPUs an estimate, which none has confirmed yet (not run).

With Psi parameters and N ranks, in 16-bit training with AdamW (ZeRO paper, arXiv 1910.02054, section 3; DeepSpeed's
bf16 optimizer and its stages 1-3 keep 32-bit gradients or copies of them besides):

    stage    weights   gradients   optimizer (fp32 copy, two moments)
    0        2 Psi     4 Psi       12 Psi        fp16: gradients 2 Psi
    1        2 Psi     4 Psi       12 Psi / N
    2        2 Psi     6 Psi / N   12 Psi / N    upper end: 16-bit share and its 32-bit copy at the step
    3        2 Psi/N   4 Psi / N   12 Psi / N    and the gathered layers, counted under buckets

Muon's matrices lack one moment (4 Psi) at stages 0 and 3; train.ema_decay adds 4 Psi / N.
In fp32 weights and gradients have 4 bytes, the moments 8, and the stages 1-3 keep a copy (4) of their share.
DeepSpeed's own estimator leaves activations, logits, buckets and context out.
"""

from __future__ import annotations

from wikillm.kernels.chunks import chunk_rows, tile_rows
from wikillm.plan.memory_cpu import memory_on_cpu
from wikillm.plan.memory_parts import Memory
from wikillm.plan.params import head_width
from wikillm.plan.setup import Setup, Shape

CONTEXT_BYTES = 2_000_000_000
"""CUDA context, cuBLAS and NCCL workspaces: 1.5 to 2.5 GB are commonly seen on a data-centre GPU."""
FRAGMENTATION = 0.05
"""What torch's caching allocator cannot use, as a share of all it holds: 3 to 6 % with steady shapes."""
KEPT_FREE = 0.08
"""Share of a GPU's memory that no plan uses: the formulas' error is not known yet, and out of memory ends a run."""
STOCK_LOGIT_BYTES = {"bf16": 14, "fp16": 14, "fp32": 12}
"""Per logit at the peak of Hugging Face's own loss: 16-bit logits (2), their fp32 copy, its log-softmax, its gradient."""


def memory_per_rank(shape: Shape, setup: Setup) -> Memory:
    """The peak of one rank, in bytes. On a CPU by formulas that were fitted to measurements (`memory_cpu`)."""
    weights, gradients, optimizer = _states(shape.parameters, setup)
    optimizer += _muon_saves(shape, setup) + (
        4 * -(-shape.parameters // setup.ranks) if setup.ema else 0
    )
    activations = setup.tokens(shape) * activation_bytes_per_token(shape, setup)
    activations += tile_bytes(shape, setup) if setup.tiled_mlp else 0
    activations += (
        setup.micro * shape.sequence_length**2 * setup.bytes_per_weight if setup.masked else 0
    )
    if setup.device == "cpu":
        return memory_on_cpu(shape, setup, activations)
    held = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "loss": loss_bytes(shape, setup),
        "buckets": _buckets(shape, setup),
    }
    return Memory(
        **held, context=CONTEXT_BYTES, fragmentation=int(FRAGMENTATION * sum(held.values()))
    )


def loss_bytes(shape: Shape, setup: Setup) -> int:
    """Output projection and loss of one micro-step.

    Stock: every logit of the micro-batch. Chunked (`kernels.linear_cross_entropy`): of a chunk the logits, their fp32
    softmax and its narrow copy (8 bytes in 16 bit, 4 in fp32), the head's gradient in fp32 (4 V h), of which the
    backward makes a narrow copy (2 V h) when the chunk is gone, and the gradient of the hidden states. In fp8 besides
    the 8-bit weight, twice (2 V h), the hidden states, in fp32 a chunk's gradient, and, before the first chunk, the weight
    in fp32 while it is scaled.
    """
    tokens, vocab, h = setup.tokens(shape), shape.vocab_size, shape.model.hidden_size
    if setup.loss == "stock":
        return tokens * vocab * STOCK_LOGIT_BYTES[setup.precision]
    width = setup.bytes_per_weight
    rows = chunk_rows(tokens, vocab, "cuda")
    chunk = rows * vocab * (4 if setup.precision == "fp32" else 8)
    held = 4 * vocab * h + width * tokens * h
    if setup.loss == "fp8":
        chunk += rows * vocab if setup.precision == "fp32" else 0
        return held + 2 * vocab * h + tokens * h + max(chunk, 4 * vocab * h)
    return held + max(chunk, width * vocab * h)


def host_bytes_per_rank(shape: Shape, setup: Setup) -> int:
    """Host memory that offload takes per rank: fp32 copy, moments and gradients (16 Psi/N), and weights (2 Psi/N)."""
    share = -(-shape.parameters // setup.ranks)
    return (16 * share if setup.offload_optimizer else 0) + (
        setup.bytes_per_weight * share if setup.offload_param else 0
    )


def activation_bytes_per_token(shape: Shape, setup: Setup) -> int:
    """What the forward pass keeps for the backward pass, in bytes per token of the micro-batch.

    Per layer of Hugging Face's decoder in 16 bit with flash attention (derived from its code): each RMSNorm keeps
    its fp32 input (4h), the normalised (2h) and the scaled vector (2h); q and k twice before and once after rotation,
    v, the attention's output, one fp32 statistic per head; four vectors of the SwiGLU. In all
    16h + 8 H d + 8 K d + 4 H + 8 f. With checkpointing one layer in full, and per layer what `kept_by_checkpointing` says.
    The tiled MLP keeps none of the 8 f: its input is the scaled vector. Where R
    ranks share sequences, attention's output exists once more (2 H d), and of fewer key heads than ranks the copies
    (4 (R / K - 1) K d); the exchanged q, k, v replace the rotated. With a mask SDPA wants a key and a value per query head
    (4 (H - K) d); the mask itself, T x T numbers of a sequence, is one for all layers.
    """
    model = shape.model
    h, d, f = model.hidden_size, head_width(model), model.intermediate_size
    heads, kv_heads, layers = (
        model.num_attention_heads,
        model.num_key_value_heads,
        model.num_hidden_layers,
    )
    scale = setup.bytes_per_weight // 2
    wide = 0 if setup.tiled_mlp else 8 * f
    layer = scale * (16 * h + 8 * heads * d + 8 * kv_heads * d + wide) + 4 * heads
    if (
        setup.masked and setup.device == "cuda"
    ):  # a CPU's attention wants them in any case (memory_cpu)
        layer += scale * 4 * (heads - kv_heads) * d
    if (ranks := setup.sequence_parallel) > 1:
        layer += scale * (2 * heads * d + 4 * max(0, ranks - kv_heads) * d)
    return (
        layers * layer
        if setup.checkpointing == "none"
        else layers * kept_by_checkpointing(shape, setup) + layer
    )


def kept_by_checkpointing(shape: Shape, setup: Setup) -> int:
    """Bytes per token of a checkpointed layer between its forward and its backward (`models.checkpointing`).

    Full: its input, 2h. Attention kept: its output and statistics as well, 2 H d + 4 H. Selective: the products q, k, v, o,
    gate and up too, 2 (H + 2 K) d + 2h + 4 f, the last two unless the MLP is tiled. In 16 bit.
    """
    model, width = shape.model, setup.bytes_per_weight
    h, d, heads = model.hidden_size, head_width(model), model.num_attention_heads
    kept = width * h
    if setup.checkpointing != "full":
        kept += width * heads * d + 4 * heads
    if setup.checkpointing == "selective":
        kept += width * ((heads + 2 * model.num_key_value_heads) * d + h)
        kept += 0 if setup.tiled_mlp else width * 2 * model.intermediate_size
    return kept


def tile_bytes(shape: Shape, setup: Setup) -> int:
    """Working memory of one tiled MLP in its backward (`kernels.tiled_swiglu`), whatever the number of layers.

    Four chunks of C x f, the fp32 sums of the three weights' gradients (12 h f), in 16 bit a chunk's product beside them (4 h f).
    """
    h, f, width = shape.model.hidden_size, shape.model.intermediate_size, setup.bytes_per_weight
    tokens = setup.tokens(shape)
    rows = min(tokens, tile_rows(tokens, f, setup.device))
    return 4 * rows * f * width + (12 if setup.precision == "fp32" else 16) * h * f


def _states(psi: int, setup: Setup) -> tuple[int, int, int]:
    """(weights, gradients, optimizer) in bytes; a share is rounded up."""
    n, stage, width = setup.ranks, setup.stage, setup.bytes_per_weight
    share = -(-psi // n)
    if stage == 0:
        gradients = {"bf16": 4, "fp16": 2, "fp32": 4}[setup.precision] * psi
        return width * psi, gradients, (8 if setup.precision == "fp32" else 12) * psi
    optimizer = 0 if setup.offload_optimizer else 12 * share
    if stage == 1:
        return width * psi, 4 * psi, optimizer
    if stage == 2:
        return width * psi, (2 if setup.offload_optimizer else 6) * share, optimizer
    weights = 0 if setup.offload_param else width * share
    if setup.quantized:
        weights += width * -(
            -psi // setup.ranks_per_node
        )  # hpZ: each node holds all weights once more
    return weights, 0 if setup.offload_optimizer else 4 * share, optimizer


def _muon_saves(shape: Shape, setup: Setup) -> int:
    """Muon has one moment (4 bytes) where AdamW has two; DeepSpeed's stages 1 and 2 keep a staged copy of it instead."""
    if not setup.muon or setup.stage in (1, 2):
        return 0
    return -4 * -(-shape.hidden_matrices // (setup.ranks if setup.stage == 3 else 1))


def _buckets(shape: Shape, setup: Setup) -> int:
    """Communication buffers; for ZeRO-3 the layers that are gathered at a time, and the gradient of one of them."""
    psi, width = shape.parameters, setup.bytes_per_weight
    if setup.stage == 3:
        live = max(min(psi, setup.max_live), shape.largest_module)
        return width * (live + shape.largest_module + min(psi, setup.reduce_bucket))
    if setup.ranks == 1:
        return 0
    reduce = min(psi, setup.reduce_bucket) * (2 if setup.overlap else 1)
    gather = min(psi, setup.allgather_bucket) if setup.stage else 0
    return width * (reduce + gather)
