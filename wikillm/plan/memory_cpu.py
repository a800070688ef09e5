"""Memory of one rank that trains on a CPU in fp32: resident bytes beyond what importing the stack takes.

Fitted to runs of 8M to 62M parameters on 2 gloo ranks (docs/measurements/2026-11-23-cpu-memory.md). With Psi parameters
and N ranks:

    stage    weights    gradients          optimizer     buckets
    DDP      4 Psi      4 Psi              8 Psi         4 Psi     torch's own copy of the gradients, N > 1
    1        4 Psi      4 Psi + 4 Psi/N    12 Psi / N    -         the share's copy is fp32 as the rest
    2        4 Psi      4 Psi / N          12 Psi / N    reduce bucket, at most 4 Psi
    3        4 Psi / N  4 Psi / N          12 Psi / N    2.8 x 4 Psi: gathered weights and more, not told apart

A buffer that is larger than the model is not resident where it was not written to, which is why buckets are bounded by Psi.
Context: libraries' pages and gloo's buffers; under DeepSpeed its shared-memory op besides (66 MiB per rank).
"""

from __future__ import annotations

from wikillm.kernels.chunks import chunk_rows
from wikillm.plan.memory_parts import Memory
from wikillm.plan.params import head_width
from wikillm.plan.setup import Setup, Shape

CONTEXT_BYTES = 44_000_000
SHARED_MEMORY_OP = 69_206_024
GATHER_COPIES = 2.8
"""ZeRO-3: gathered weights, full gradients before they are shared out, and copies of the collectives: as measured."""


def memory_on_cpu(shape: Shape, setup: Setup, activations: int) -> Memory:
    """The peak of one rank. `activations`: bytes that the forward pass keeps, without the repeated keys and values."""
    psi, n, model = shape.parameters, setup.ranks, shape.model
    share, tokens = -(-psi // n), setup.tokens(shape)
    has_deepspeed = setup.recipe != "ddp"
    weights, gradients, optimizer = 4 * psi, 4 * psi, 8 * psi
    buckets = 4 * psi if n > 1 else 0
    if setup.stage:
        optimizer = 12 * share
        gradients = {1: 4 * psi + 4 * share, 2: 4 * share, 3: 4 * share}[setup.stage]
        buckets = 4 * min(psi, setup.reduce_bucket) if setup.stage == 2 else 0
    if setup.stage == 3:
        weights = 4 * share
        buckets = int(GATHER_COPIES * 4 * min(psi, setup.max_live))
    # The attention of CPUs has no grouped queries: keys and values are repeated for each query head, and kept.
    repeated = 8 * model.num_attention_heads * head_width(model)
    layers = model.num_hidden_layers if setup.checkpointing == "none" else 1
    head = 4 * shape.vocab_size * model.hidden_size
    rows = tokens if setup.loss == "stock" else chunk_rows(tokens, shape.vocab_size, "cpu")
    logits = rows * shape.vocab_size * (12 if setup.loss == "stock" else 4)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations + tokens * layers * repeated,
        loss=logits
        if setup.loss == "stock"
        else head + max(logits, head) + 4 * tokens * model.hidden_size,
        buckets=buckets,
        context=CONTEXT_BYTES + (SHARED_MEMORY_OP if has_deepspeed else 0),
        fragmentation=0,
    )
