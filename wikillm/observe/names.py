"""Names of all metrics, in one place: the keys of `metrics.jsonl`, `events.jsonl` and SwanLab.

`metrics.jsonl` holds one object per logging step and nothing else, so that
`[json.loads(line)["loss"] for line in f]` is the loss curve. Other events (start, evaluation,
samples, finish) are objects of `events.jsonl` with a `kind`. Concepts of Hugging Face keep their
names. Fractions are 0..1, sizes are in bytes, times in seconds. A value that is not finite is
written as null and listed under `nonfinite`: {"loss": null, "nonfinite": {"loss": "nan"}}.
"""

from __future__ import annotations

STEP = "step"
"""Optimizer steps done."""
SEGMENT = "segment"
"""0 for the first start, plus 1 per resume. A step's record with the highest segment is valid."""
TIME = "time"
"""Unix time of writing."""
TOKENS = "tokens"
"""Tokens trained on since step 0, over all ranks."""
EPOCH = "epoch"
"""Passes over the training data, as a fraction."""
LOSS = "loss"
"""Mean training loss since the last logging step, nats per token."""
LEARNING_RATE = "learning_rate"
GRAD_NORM = "grad_norm"
"""Global norm of the gradient before clipping."""
TOKENS_PER_SECOND = "tokens_per_second"
"""Over all ranks, since the last logging step, without evaluation, checkpoints and samples."""
TOKENS_PER_SECOND_PER_DEVICE = "tokens_per_second_per_device"
TFLOPS_PER_DEVICE = "tflops_per_device"
"""Model TFLOP/s of one device: FLOPs per token x tokens/s per device, recomputation not counted."""
MFU = "mfu"
"""Model FLOP/s over the device's dense bf16 peak. Absent if the peak is unknown, as on a CPU."""
DATA_WAIT_FRACTION = "data_wait_fraction"
"""Share of this rank's time spent waiting for the next batch."""
MEMORY_BYTES = "memory_bytes"
"""Peak memory of this rank: allocated on the GPU, resident on a CPU."""
ENERGY_JOULES = "energy_joules"
"""Energy of this rank's GPU since the process started. Absent if the GPU has no counter."""
STEP_SECONDS = "step_seconds"
"""Mean time of an optimizer step since the last logging step."""
TRAIN_SECONDS = "train_seconds"
"""Time in training so far, pauses not counted."""
NONFINITE = "nonfinite"
"""Name -> nan, inf or -inf, for each value that was not finite."""

KIND = "kind"
START = "start"
WORLD_SIZE = "world_size"
"""Number of ranks of a start."""
EVAL = "eval"
SAMPLES = "samples"
SPIKE = "spike"
FINISH = "finish"
EVAL_LOSS = "eval_loss"
"""Mean loss on the held-out tokens, nats per token."""
BITS_PER_BYTE = "bits_per_byte"
"""eval_loss x tokens / (bytes x ln 2): comparable between tokenizers."""
EVAL_TOKENS = "eval_tokens"
TASKS = "tasks"
TASK_ACCURACY = "task_accuracy"
TASK_BITS_PER_BYTE = "task_bits_per_byte"
"""Values of multiple-choice tasks; a slash and the task's name follow: `task_accuracy/ceval`."""
SOURCE_SAMPLES = "source_samples"
SOURCE_TOKENS = "source_tokens"
SOURCE_EPOCHS = "source_epochs"
"""Values of a mixture's sources; a slash and the source's name follow: `source_tokens/wiki`."""


def of_source(name: str, source: str) -> str:
    """The name of a value of one source of a mixture."""
    return f"{name}/{source}"


def chart(name: str, kind: str | None = None) -> str:
    """The name on a dashboard, where the part before the slash groups charts: `train/loss`."""
    if "/" in name:  # a value of a source: `source_tokens/wiki`
        return name
    if kind == EVAL or name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"train/{name}"
