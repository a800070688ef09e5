"""Every key of a run's configuration: type, default and one sentence.

The sentence under a field appears in `--help`, in the docs and in the JSON schema. A key has
Hugging Face's name if Hugging Face has the setting; other names contain their unit. `schema_data`,
`schema_train` and `schema_alerts` hold the long sections. Rules across keys are in `checks` and
`compatibility`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wikillm.config.schema_alerts import AlertsSection
from wikillm.config.schema_data import DataSection
from wikillm.config.schema_train import TrainSection
from wikillm.config.schema_types import Count, Paths, Section


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[\w][\w.\-]*$")
    """Name of the run; the default directory is runs/NAME."""
    dir: str | None = None
    """Run directory: config, metrics, logs and checkpoints. Default: runs/NAME."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of the initial weights and of the order of the data."""


class ModelSection(Section):
    preset: str = "120m"
    """A model preset (`wikillm presets`)."""
    depth: int | None = Field(default=None, ge=1, le=128)
    """Number of layers, from which laws derive shape, batch, horizon and learning rates."""
    size: Count | None = None
    """Number of parameters, such as 300m; sets the nearest model.depth."""
    architecture: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    """qwen2 (biases on q, k, v), qwen3 (RMSNorm on q and k) or llama (neither)."""
    hidden_size: int = Field(default=512, ge=1, le=2**20)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=12, ge=1, le=100_000)
    """Number of decoder layers."""
    num_attention_heads: int = Field(default=8, ge=1, le=2**16)
    """Query heads."""
    num_key_value_heads: int = Field(default=2, ge=1, le=2**16)
    """Key and value heads (grouped-query attention)."""
    head_dim: int | None = Field(default=None, ge=1, le=2**16)
    """Width of a head. Default: hidden_size / num_attention_heads."""
    intermediate_size: int = Field(default=2048, ge=1, le=2**24)
    """Width of the SwiGLU feed-forward."""
    tie_word_embeddings: bool = True
    """Use the embedding as the output projection."""
    max_position_embeddings: int = Field(default=32768, ge=1, le=2**31)
    """Longest sequence the exported model declares."""
    rope_theta: float = Field(default=1_000_000.0, gt=0)
    """Base of the rotary position embedding."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of RMSNorm."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""
    final_norm_init: float = Field(default=1.0, gt=0)
    """Initial weight of the norm before the output head, which scales the first logits; without
    effect on weights that are loaded."""
    vocab_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows of the embedding; auto is 151936 for Qwen2's tokenizer and otherwise the tokenizer's
    length rounded up to a multiple of 128."""
    init_from: str | None = None
    """Folder of a Hugging Face model to continue from; its config replaces the preset's shape."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel, by Hugging Face's name; flash_attention_2 needs a GPU."""

    @property
    def label(self) -> str:
        """Name of the shape for messages: the preset, depth or folder that set the shape."""
        if self.init_from is not None:
            return self.init_from
        by_laws = self.depth is not None or self.size is not None
        return f"depth {self.num_hidden_layers}" if by_laws else self.preset


class SwanLabSection(Section):
    mode: Literal["offline", "online", "local", "disabled"] = "offline"
    """offline writes files that `swanlab sync` uploads later; online needs SWANLAB_API_KEY."""
    project: str = "wikillm"
    """SwanLab project."""
    workspace: str | None = None
    """SwanLab workspace (user or team). Default: the account's own."""
    experiment_name: str | None = None
    """Name of the experiment. Default: run.name."""
    log_dir: str | None = None
    """Folder for SwanLab's files. Default: RUN/swanlog."""
    finish_timeout_seconds: float = Field(default=15.0, gt=0)
    """Longest wait for SwanLab to finish at the end of training."""
    hardware_seconds: int | None = Field(default=None, ge=5, le=86_400)
    """Seconds between SwanLab's readings of rank 0's machine (CPU, GPU, memory). Default: none."""


class ObserveSection(Section):
    swanlab: SwanLabSection = SwanLabSection()
    live: Literal["auto", "off"] = "auto"
    """auto shows a live view of the run if rank 0's output is a terminal; off prints lines."""
    sample_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between sample generations. Default: at each evaluation."""
    sample_prompts: Paths = ("中国的首都是", "The history of", "")
    """Prompts of the samples; an empty prompt starts from the end-of-text token."""
    sample_tokens: int = Field(default=48, ge=1, le=2**31)
    """New tokens per sample."""


class DeepSpeedSection(Section):
    config: str | None = None
    """A DeepSpeed JSON: a file, or the name of a shipped recipe (zero2). Default: none, for plain
    data parallelism."""


class RunConfig(Section):
    """A whole run. Values come from defaults < presets < file < command line."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    observe: ObserveSection = ObserveSection()
    alerts: AlertsSection = AlertsSection()
    deepspeed: DeepSpeedSection = DeepSpeedSection()
