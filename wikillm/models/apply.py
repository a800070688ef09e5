"""Applies a run's patches to its model, in the required order, with a log line for each."""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedModel

from wikillm.config.schema_train import TrainSection
from wikillm.core.log import say
from wikillm.models.attention_mask import CAUSAL_KERNELS, prepare_masks
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import Shape, compile_layers
from wikillm.models.compile_elementwise import compile_elementwise
from wikillm.models.fused_loss import patch_loss
from wikillm.models.sequence_parallel import split_sequences
from wikillm.models.tiled_mlp import tile_mlp


def apply_patches(
    model: PreTrainedModel,
    train: TrainSection,
    *,
    rows: int,
    shapes: Collection[Shape],
    device_type: str,
) -> None:
    """Patch the model by the settings in `train`. (all ranks)

    Args:
        rows: tokens of a rank's micro-step.
        shapes: (sequences, tokens) of a rank's training and evaluation batches.
    """
    # Loss, MLP and attention are independent of one another: their order is free.
    loss = patch_loss(model, train.loss_kernel, rows=rows, device_type=device_type)
    say(f"kernels    linear cross entropy: {loss}")
    if train.mlp_kernel == "tiled":
        say(f"kernels    MLP: {tile_mlp(model, rows=rows, device_type=device_type)}")
    kernel = str(model.config._attn_implementation)
    if kernel in CAUSAL_KERNELS:
        prepare_masks(model)
    if train.document_mask == "on":
        say(f"attention  within documents, by {kernel}")
    if train.sequence_parallel_size > 1:
        say(f"attention  {split_sequences(model, train.sequence_parallel_size)}")
    # After the parts: a checkpointed layer recomputes them, and must recompute the patched ones.
    if train.gradient_checkpointing != "none":
        say(f"recompute  {checkpoint_layers(model, train.gradient_checkpointing)}")
    # After checkpointing: the compiled layer must contain the checkpoint.
    if train.compile == "layers":
        layers = compile_layers(model, shapes)
        say(f"compile    {layers} layers, at the first step (about a minute)")
    # After the tiled MLP, whose SwiGLU is not compiled.
    if train.compile == "elementwise":
        say(f"compile    {compile_elementwise(model)}, at the first step (half a minute)")
