"""What a run's switches put into its model, in the order that they need, each said in the log."""

from __future__ import annotations

from transformers import PreTrainedModel

from wikillm.config.schema import RunConfig
from wikillm.core.log import say
from wikillm.models.attention_mask import CAUSAL_KERNELS, prepare_masks
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import compile_layers
from wikillm.models.compile_elementwise import compile_elementwise
from wikillm.models.patch import LOSS, patch_loss
from wikillm.models.sequence_parallel import split_sequences
from wikillm.models.tiled_mlp import MLP, tile_mlp
from wikillm.models.z_loss import ZLoss
from wikillm.plan.run_plan import Plan


def patch_model(
    model: PreTrainedModel, cfg: RunConfig, plan: Plan, *, device_type: str, eval_batch: int
) -> ZLoss | None:
    """The z-loss that the run logs, where it has one. (all ranks)

    Args:
        eval_batch: sequences of an evaluation's micro-batch; with those of training it says which shapes are compiled.
    """
    train, rows, shared = cfg.train, plan.micro_batch_tokens, plan.sequence_parallel_size
    z_loss = ZLoss(train.z_loss) if train.z_loss else None
    say(
        f"kernels    {LOSS}: {patch_loss(model, train.loss_kernel, rows=rows, device_type=device_type, z_loss=z_loss)}"
    )
    if train.mlp_kernel == "tiled":
        say(f"kernels    {MLP}: {tile_mlp(model, rows=rows, device_type=device_type)}")
    if cfg.model.attn_implementation in CAUSAL_KERNELS:
        prepare_masks(model)
    if train.document_mask == "on":
        say(f"attention  within documents, by {cfg.model.attn_implementation}")
    if shared > 1:
        say(f"attention  {split_sequences(model, shared)}")
    if train.gradient_checkpointing != "none":
        say(f"recompute  {checkpoint_layers(model, train.gradient_checkpointing)}")
    if train.compile == "layers":
        batches = {
            (size, plan.sequence_length // shared) for size in (plan.micro_batch, eval_batch)
        }
        say(
            f"compile    {compile_layers(model, batches)} layers, at the first step (about a minute)"
        )
    if train.compile == "elementwise":  # late: it leaves an MLP alone that has its own SwiGLU
        say(f"compile    {compile_elementwise(model)}, at the first step (half a minute)")
    return z_loss
