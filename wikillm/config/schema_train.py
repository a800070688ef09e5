"""The section `train`: batch, horizon, optimizer, precision, kernels, checkpoints, and supervision
of the ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wikillm.config.schema_types import ALSO_A_SWITCH, Checkpointing, Count, Paths, Section


class TrainSection(Section):
    sequence_length: int = Field(default=512, ge=2, le=2**31)
    """Tokens per sequence."""
    sequence_parallel_size: int = Field(default=1, ge=1, le=2**16)
    """Ranks that share each sequence (Ulysses, arXiv:2309.14509), to save memory on long sequences.
    Must divide ranks, heads and sequence_length."""
    document_mask: Literal["on", "off"] = "off"
    """on: attention stays within each document, and positions restart at its beginning; off:
    attention sees the whole sequence."""
    global_batch_tokens: Count | None = None
    """Tokens per optimizer step over all ranks. Accumulation is derived from it, so the batch does
    not depend on the number of GPUs."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] = "auto"
    """Sequences per rank and micro-step; auto is the largest number that divides the batch, stays
    within max_micro_batch_tokens and fits the GPU's memory by the planner's estimate."""
    max_micro_batch_tokens: Count = 16_384
    """Upper limit in tokens, per rank and micro-step, for per_device_train_batch_size=auto. One
    sequence is always allowed."""
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, le=2**31)
    """Sets the batch as Hugging Face does: micro-batch x accumulation x ranks. Excludes
    global_batch_tokens."""
    per_device_eval_batch_size: int | None = Field(default=None, ge=1, le=2**20)
    """Sequences per rank in evaluation. Default: per_device_train_batch_size."""
    max_tokens: Count | None = None
    """Horizon in tokens. Set exactly one of max_tokens, max_steps, num_train_epochs."""
    max_steps: Count | None = None
    """Horizon in optimizer steps."""
    num_train_epochs: float | None = Field(default=None, gt=0, le=1e6)
    """Horizon in passes over the training data."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: Literal[
        "cosine",
        "cosine_with_min_lr",
        "linear",
        "constant",
        "constant_with_warmup",
        "warmup_stable_decay",
    ] = "cosine"
    """Schedule after warm-up; warmup_stable_decay holds the peak rate and decays it at the end
    (arXiv:2404.06395)."""
    lr_decay_share: float = Field(default=0.5, gt=0, le=1)
    """Share of all steps over which warmup_stable_decay decays to 0."""
    lr_decay_type: Literal["1-sqrt", "linear"] = "linear"
    """Shape of the decay in warmup_stable_decay."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """For cosine_with_min_lr: final learning rate as a share of the peak."""
    warmup_steps: float = Field(default=200, ge=0)
    """Steps of linear warm-up; a value below 1 is a share of all steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon uses Muon for the layers' matrices and AdamW for embeddings, head, norms and biases;
    needs max_grad_norm=0."""
    muon_learning_rate: float = Field(default=0.01, gt=0)
    """Peak learning rate of Muon's parameters; learning_rate is the peak of AdamW's parameters.
    Both follow the schedule."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum (Nesterov)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; norms and biases are exempt."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient to this norm; 0 disables clipping."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto is bf16 if the hardware supports it (a CPU is measured at the start), otherwise fp16 on
    a GPU and fp32 on a CPU."""
    loss_kernel: Literal["auto", "chunked", "triton", "fp8", "stock"] = "auto"
    """Implementation of the loss: chunked, triton (GPU only) and fp8 (8-bit products) keep no
    logits, stock is Hugging Face's, auto is chunked."""
    mlp_kernel: Literal["stock", "tiled"] = "stock"
    """tiled computes the MLPs in chunks of tokens and recomputes them in the backward pass, which
    takes less memory on long sequences and more compute."""
    compile: Literal["off", "layers", "elementwise"] = "off"
    """torch.compile: layers compiles each layer (not with ZeRO-3), elementwise only norms,
    rotation and SwiGLU."""
    gradient_checkpointing: Annotated[Checkpointing, ALSO_A_SWITCH] = "none"
    """Recompute activations in the backward pass to save memory: selective keeps the outputs of
    matrix products, full (or true) keeps only the inputs of layers."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Keep a moving average of the weights with this decay, for `wikillm export --ema`."""
    ema_start: float = Field(default=0.8, ge=0, lt=1)
    """Share of all steps after which the moving average begins."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between log lines."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations. Default: only at the end."""
    max_eval_tokens: Count | None = None
    """Evaluate on this many held-out tokens. Default: all of them."""
    eval_tasks: Paths = ()
    """Multiple-choice tasks to score during training: ceval:FOLDER, cmmlu:FOLDER, choices:FILE."""
    eval_tasks_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between the scores of eval_tasks. Default: at each evaluation."""
    eval_tasks_budget: int = Field(default=200, ge=1)
    """Number of questions scored in each task, evenly spaced over the task and always the same."""
    save_steps: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints. The end of training always writes a checkpoint."""
    max_hours: float | None = Field(default=None, gt=0)
    """Save and exit with code 75 before the process, or the Slurm job, has run for this many
    hours."""
    save_total_limit: int = Field(default=3, ge=1, le=2**31)
    """Number of most recent complete checkpoints to keep."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Also keep, permanently, the checkpoints at multiples of this many steps."""
    keep_best: int = Field(default=0, ge=0, le=2**31)
    """Also keep this many checkpoints with the lowest held-out loss."""
    dataloader_num_workers: int = Field(default=0, ge=0, le=1024)
    """DataLoader workers per rank; with 0 the training process reads the memory-mapped files."""
    max_skipped_steps: int = Field(default=20, ge=1)
    """fp16: stop the run after the loss scaler skips this many steps in a row."""
    self_check: Literal["off", "quick", "full"] = "quick"
    """At the start, check learning rates, first loss and gradient norm; full also compares the loss
    of a micro-batch with the losses of its rows."""
    spikes: Literal["off", "report", "skip"] = "report"
    """report: warn of a loss far above the recent losses and record its documents; skip: also go
    back to the last checkpoint and leave out the samples of the steps since."""
    spike_window: int = Field(default=128, ge=8, le=4096)
    """Number of previous losses that a loss is compared with."""
    spike_threshold: float = Field(default=8.0, gt=0)
    """A loss is a spike if it is this many standard deviations (estimated from the MAD) above the
    median of the window."""
    max_skips: int = Field(default=5, ge=0)
    """spikes=skip: number of times that the run may leave out samples; the next time ends it with
    exit code 5."""
    weight_check_steps: int = Field(default=100, ge=0)
    """Optimizer steps between comparisons of the ranks' weights; 0 disables them. Weights are also
    compared before each checkpoint."""
    exit_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a rank waits for the other ranks before it exits."""
    supervise: Literal["auto", "on", "off"] = "auto"
    """Watch the ranks from separate processes, and end the run if a rank is lost or stalls. on uses
    the network even on one node."""
    lost_seconds: float = Field(default=20.0, ge=5)
    """A node without a heartbeat for this long is lost."""
    stall_seconds: float = Field(default=120.0, gt=0)
    """End the run if no step finishes for this long and for 10 median steps; other phases have
    longer limits."""
    rendezvous_seconds: float = Field(default=50.0, gt=0)
    """How long the nodes wait for each other at the start."""
