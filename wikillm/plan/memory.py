"""Memory of one rank by part, by formula. For GPUs it is an estimate that no run has confirmed yet.

With Psi parameters and N ranks, in 16-bit training with AdamW (ZeRO paper, arXiv:1910.02054,
section 3). DeepSpeed's bf16 optimizer and ZeRO stages 1 to 3 also keep the gradients in fp32:

    stage    weights   gradients   optimizer (fp32 copy, two moments)
    0        2 Psi     4 Psi       12 Psi        fp16: gradients 2 Psi
    1        2 Psi     4 Psi       12 Psi / N
    2        2 Psi     6 Psi / N   12 Psi / N    16-bit gradients, and an fp32 copy in the step
    3        2 Psi/N   4 Psi / N   12 Psi / N    plus gathered layers: see `Memory.buckets`

With 10^9 parameters on 8 ranks: stage 0 keeps 18 GB, stage 1 7.5, stage 2 4.25, stage 3 2.25.
At stages 0 and 3, Muon's matrices have one moment fewer: 4 bytes less per element.
train.ema_decay adds 4 Psi / N. In fp32, weights and gradients take 4 bytes each and the moments 8;
stages 1 to 3 also keep a 4-byte copy of the weights that each rank updates. DeepSpeed's own
estimator leaves out activations, logits, buckets and context.

On a CPU in fp32: resident memory minus what the imported libraries use, fitted to runs of 8M to 62M
parameters on 2 gloo ranks (docs/measurements/2026-11-23-cpu-memory.md).

    stage    weights    gradients          optimizer     buckets
    DDP      4 Psi      4 Psi              8 Psi         4 Psi     torch's own copy, N > 1
    1        4 Psi      4 Psi + 4 Psi/N    12 Psi / N    -         see above
    2        4 Psi      4 Psi / N          12 Psi / N    reduce bucket, at most 4 Psi
    3        4 Psi / N  4 Psi / N          12 Psi / N    2.8 x 4 Psi: see GATHER_COPIES

Memory that is never written is not resident, so a bucket counts at most Psi elements.

In the formulas below: h hidden size, f feed-forward width, H query heads, K key heads, d width of a
head, V vocabulary, T tokens per sequence, C rows of a chunk, R ranks that share a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from wikillm.kernels.chunks import loss_chunk_rows, mlp_chunk_rows
from wikillm.plan.params import head_width
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload

CONTEXT_BYTES = 2_000_000_000
"""CUDA context, cuBLAS and NCCL workspaces: commonly 1.5 to 2.5 GB on a data-centre GPU."""
FRAGMENTATION = 0.05
"""Share of the memory that torch's caching allocator cannot use: 3 to 6 % with steady shapes."""
KEPT_FREE = 0.08
"""Safety margin: share of GPU memory that plans leave free, as the formulas' error is unknown."""
STOCK_LOGIT_BYTES = {"bf16": 14, "fp16": 14, "fp32": 12}
"""Bytes per logit at the peak of Hugging Face's loss: logits, fp32 copy, log-softmax, gradient."""
CPU_CONTEXT_BYTES = 44_000_000
"""Pages of libraries, and gloo's buffers."""
GATHER_COPIES = 2.8
"""Gathered weights, full gradients and buffers of collectives of ZeRO-3 on a CPU, as a multiple of
the weights; measured."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank, on its GPU or on the host. `total` is the sum of the parts."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    buckets: int
    context: int
    fragmentation: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def allocated(self) -> int:
        """Bytes that torch's allocator hands out on a GPU: no CUDA context, no fragmentation."""
        return self.total - self.context - self.fragmentation

    def parts(self) -> dict[str, int]:
        return {field.name: int(getattr(self, field.name)) for field in fields(self)}


def memory_per_rank(workload: Workload, strategy: Strategy) -> Memory:
    """Peak memory of one rank."""
    tokens = strategy.tokens(workload)
    activations = tokens * activation_bytes_per_token(workload, strategy)
    if strategy.tiled_mlp:
        activations += tile_bytes(workload, strategy)
    if strategy.masked:
        mask = strategy.micro * workload.sequence_length**2
        activations += mask * strategy.bytes_per_weight
    if strategy.device == "cpu":
        return _on_cpu(workload, strategy, activations)
    weights, gradients, optimizer = _states(workload.parameters, strategy)
    optimizer -= _saved_by_muon(workload, strategy)
    if strategy.ema:
        optimizer += 4 * -(-workload.parameters // strategy.ranks)
    used = Memory(
        weights,
        gradients,
        optimizer,
        activations,
        loss_bytes(workload, strategy),
        _buckets(workload, strategy),
        context=0,
    )
    return replace(used, context=CONTEXT_BYTES, fragmentation=int(FRAGMENTATION * used.total))


def sequences_that_fit(workload: Workload, strategy: Strategy, gpu_memory: int, wanted: int) -> int:
    """The largest micro-batch up to `wanted` that fits into `gpu_memory` bytes.

    Returns 1 even if one sequence does not fit, because the memory is only an estimate.
    """
    usable = (1 - KEPT_FREE) * gpu_memory
    for micro in range(wanted, 1, -1):
        if memory_per_rank(workload, replace(strategy, micro=micro)).total <= usable:
            return micro
    return 1


def loss_bytes(workload: Workload, strategy: Strategy) -> int:
    """Bytes of the output projection and the loss of one micro-step on a GPU.

    "stock" (Hugging Face's loss) keeps every logit of the micro-batch. "chunked"
    (`kernels.linear_cross_entropy`) keeps:
    - for one chunk: logits, fp32 softmax and its 16-bit copy (8 bytes per logit; 4 in fp32);
    - the head's gradient in fp32 (4 V h), copied to 16 bit (2 V h) after the last chunk;
    - the gradient of the hidden states.
    "fp8" adds two 8-bit copies of the weight (2 V h), the 8-bit hidden states and, in fp32, the
    gradient of one chunk. Before the first chunk it holds an fp32 copy of the weight.
    """
    tokens = strategy.tokens(workload)
    vocab = workload.vocab_size
    h = workload.model.hidden_size
    if strategy.loss == "stock":
        return tokens * vocab * STOCK_LOGIT_BYTES[strategy.precision]
    width = strategy.bytes_per_weight
    logits = loss_chunk_rows(tokens, vocab, "cuda") * vocab
    chunk = logits * (4 if strategy.precision == "fp32" else 8)
    held = 4 * vocab * h + width * tokens * h
    if strategy.loss == "fp8":
        chunk += logits if strategy.precision == "fp32" else 0
        return held + 2 * vocab * h + tokens * h + max(chunk, 4 * vocab * h)
    return held + max(chunk, width * vocab * h)


def host_bytes_per_rank(workload: Workload, strategy: Strategy) -> int:
    """Host memory of offload: fp32 copy, moments, gradients (16 Psi/N); weights (2 Psi/N)."""
    partition = -(-workload.parameters // strategy.ranks)
    states = 16 * partition if strategy.offload_optimizer else 0
    return states + (strategy.bytes_per_weight * partition if strategy.offload_param else 0)


def activation_bytes_per_token(workload: Workload, strategy: Strategy) -> int:
    """Bytes per token of the micro-batch that the forward pass keeps for the backward pass.

    A layer of Hugging Face's decoder in 16 bit with flash attention keeps (derived from its code):
    for each RMSNorm its fp32 input (4h), the normalised vector (2h) and the scaled vector (2h); two
    copies of q and k before RoPE and one after it; v; attention's output; one fp32 statistic per
    head; four vectors of the SwiGLU. The sum is 16h + 8 H d + 8 K d + 4 H + 8 f. With checkpointing
    one layer is kept in full, and every layer keeps `kept_by_checkpointing`. A tiled MLP keeps none
    of the 8 f: its input, the output of RMSNorm, is already counted.

    With sequence parallelism over R ranks, the attention output is kept twice (2 H d more). If
    K < R, replicated key and value heads add 4 (R / K - 1) K d. The exchanged q, k and v replace
    the rotated ones. With a mask, SDPA needs keys and values repeated for every query head
    (4 (H - K) d). The mask itself, T x T numbers per sequence, is shared by all layers.
    """
    layer = kept_by_layer(workload, strategy)
    layers = workload.model.num_hidden_layers
    if strategy.checkpointing == "none":
        return layers * layer
    return layers * kept_by_checkpointing(workload, strategy) + layer


def kept_by_layer(workload: Workload, strategy: Strategy) -> int:
    """Bytes per token that one layer keeps without checkpointing (`activation_bytes_per_token`)."""
    model = workload.model
    h = model.hidden_size
    d = head_width(model)
    f = model.intermediate_size
    heads = model.num_attention_heads
    kv_heads = model.num_key_value_heads
    scale = strategy.bytes_per_weight // 2
    wide = 0 if strategy.tiled_mlp else 8 * f
    layer = scale * (16 * h + 8 * heads * d + 8 * kv_heads * d + wide) + 4 * heads
    if strategy.masked and strategy.device == "cuda":  # a CPU's attention repeats them anyway
        layer += scale * 4 * (heads - kv_heads) * d
    if (ranks := strategy.sequence_parallel) > 1:
        layer += scale * (2 * heads * d + 4 * max(0, ranks - kv_heads) * d)
    return layer


def kept_by_checkpointing(workload: Workload, strategy: Strategy) -> int:
    """Bytes per token that a checkpointed layer keeps, in 16 bit (`models.checkpointing`).

    `full` keeps the layer's input, 2h. `full_but_attention` adds attention's output and statistics,
    2 H d + 4 H. `selective` also adds the products q, k, v and o, 2 (H + 2 K) d + 2h, and, unless
    the MLP is tiled, gate and up, 4 f.
    """
    model = workload.model
    width = strategy.bytes_per_weight
    h = model.hidden_size
    d = head_width(model)
    heads = model.num_attention_heads
    kept = width * h
    if strategy.checkpointing != "full":
        kept += width * heads * d + 4 * heads
    if strategy.checkpointing == "selective":
        kept += width * ((heads + 2 * model.num_key_value_heads) * d + h)
        kept += 0 if strategy.tiled_mlp else width * 2 * model.intermediate_size
    return kept


def tile_bytes(workload: Workload, strategy: Strategy) -> int:
    """Working memory of a tiled MLP in its backward; it does not depend on the number of layers.

    Four chunks of C x f, three weight gradients summed in fp32 (12 h f) and, in 16 bit, one chunk's
    product (4 h f). See `kernels.tiled_swiglu`.
    """
    h = workload.model.hidden_size
    f = workload.model.intermediate_size
    tokens = strategy.tokens(workload)
    rows = min(tokens, mlp_chunk_rows(tokens, f, strategy.device))
    sums = (12 if strategy.precision == "fp32" else 16) * h * f
    return 4 * rows * f * strategy.bytes_per_weight + sums


def _states(psi: int, strategy: Strategy) -> tuple[int, int, int]:
    """(weights, gradients, optimizer) in bytes on a GPU; a partition is rounded up."""
    stage = strategy.stage
    width = strategy.bytes_per_weight
    partition = -(-psi // strategy.ranks)
    if stage == 0:
        gradients = (2 if strategy.precision == "fp16" else 4) * psi
        return width * psi, gradients, (8 if strategy.precision == "fp32" else 12) * psi
    optimizer = 0 if strategy.offload_optimizer else 12 * partition
    if stage == 1:
        return width * psi, 4 * psi, optimizer
    if stage == 2:
        return width * psi, (2 if strategy.offload_optimizer else 6) * partition, optimizer
    weights = 0 if strategy.offload_param else width * partition
    if strategy.quantized:  # hpZ: each node holds all weights once more
        weights += width * -(-psi // strategy.ranks_per_node)
    return weights, 0 if strategy.offload_optimizer else 4 * partition, optimizer


def _saved_by_muon(workload: Workload, strategy: Strategy) -> int:
    """Bytes that Muon's single moment saves; none at stages 1 and 2, which keep a copy."""
    if not strategy.muon or strategy.stage in (1, 2):
        return 0
    return 4 * -(-workload.hidden_matrices // (strategy.ranks if strategy.stage == 3 else 1))


def _buckets(workload: Workload, strategy: Strategy) -> int:
    """Bytes of communication buffers. ZeRO-3 gathers layers and a layer's gradient in them."""
    psi = workload.parameters
    width = strategy.bytes_per_weight
    if strategy.stage == 3:
        largest = workload.largest_module
        live = max(min(psi, strategy.max_live), largest)
        return width * (live + largest + min(psi, strategy.reduce_bucket))
    if strategy.ranks == 1:
        return 0
    # Stages 1 and 2 gather the updated weights in place (plan/time.py), which needs no buffer.
    return width * min(psi, strategy.reduce_bucket) * (2 if strategy.overlap else 1)


def _on_cpu(workload: Workload, strategy: Strategy, activations: int) -> Memory:
    """Peak memory of one rank on a CPU.

    `activations`: bytes before adding the keys and values that attention on a CPU repeats.
    """
    psi = workload.parameters
    model = workload.model
    tokens = strategy.tokens(workload)
    partition = -(-psi // strategy.ranks)
    # DDP and stage 0; the other stages replace some of these figures.
    weights = gradients = 4 * psi
    optimizer = 8 * psi
    buckets = 4 * psi if strategy.ranks > 1 else 0
    if strategy.stage:
        optimizer = 12 * partition
        gradients = 4 * partition + (4 * psi if strategy.stage == 1 else 0)
        buckets = 4 * min(psi, strategy.reduce_bucket) if strategy.stage == 2 else 0
    if strategy.stage == 3:
        weights = 4 * partition
        buckets = int(GATHER_COPIES * 4 * min(psi, strategy.max_live))
    # Attention on a CPU has no grouped queries: it repeats keys and values for each query head.
    repeated = 8 * model.num_attention_heads * head_width(model)
    layers = model.num_hidden_layers if strategy.checkpointing == "none" else 1
    head = 4 * workload.vocab_size * model.hidden_size
    if strategy.loss == "stock":
        loss = 12 * tokens * workload.vocab_size
    else:
        rows = loss_chunk_rows(tokens, workload.vocab_size, "cpu")
        loss = head + max(4 * rows * workload.vocab_size, head) + 4 * tokens * model.hidden_size
    return Memory(
        weights,
        gradients,
        optimizer,
        activations + tokens * layers * repeated,
        loss,
        buckets,
        context=CPU_CONTEXT_BYTES,
    )
