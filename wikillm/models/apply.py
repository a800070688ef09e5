"""The patches of a run, in the order that they need, each logged: `apply_patches`."""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedModel

from wikillm.config.schema import TrainSection
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
    """Patch the model as the run asks. (all ranks)

    Args:
        rows: tokens of a rank's micro-step.
        shapes: (sequences, tokens) of the batches of training and evaluation, on one rank.
    """
    # Loss, MLP and attention: parts that do not touch one another, so their order is free.
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
    # Around whole layers, so that the parts inside are recomputed as they are patched.
    if train.gradient_checkpointing != "none":
        say(f"recompute  {checkpoint_layers(model, train.gradient_checkpointing)}")
    # Outside of the checkpoint: the compiled layer contains it.
    if train.compile == "layers":
        layers = compile_layers(model, shapes)
        say(f"compile    {layers} layers, at the first step (about a minute)")
    # After the tiled MLP, whose SwiGLU it leaves alone.
    if train.compile == "elementwise":
        say(f"compile    {compile_elementwise(model)}, at the first step (half a minute)")
