"""The shape of a run's configuration: every key, its type, its default, and one sentence about it.

The sentence under a field feeds `--help`, `wikillm config show` and the docs. Models are frozen and refuse
unknown keys. Where Hugging Face has a name for a concept, the key has that name; keys of our own carry their
unit. What needs more than one section, or the machine, is checked in `plan`, not here.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from wikillm.core.units import parse_count, parse_size

Count = Annotated[int, BeforeValidator(lambda v: v if v is None else parse_count(v)), Field(ge=1)]
"""A whole number that may be written "1_000_000", "1M" or "1e6"."""
Size = Annotated[int, BeforeValidator(lambda v: v if v is None else parse_size(v)), Field(ge=1)]
"""A number of bytes that may be written "64MiB" or "6MB"."""


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _full_or_none(value: Any) -> Any:
    word = str(value).lower()
    return "full" if word in YES else "none" if word in NO else value


YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
Packing = Literal["concat", "best_fit"]
Checkpointing = Literal["none", "selective", "full_but_attention", "full"]
"""What the backward pass computes again, from nothing to everything."""
ALSO_A_SWITCH = BeforeValidator(_full_or_none)
"""For a key that is a switch elsewhere."""
Format = Literal["auto", "jsonl", "json", "mediawiki", "text", "blocks", "lines", "csv", "parquet"]
Paths = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


LARGEST = 2**63 - 1
"""Of a whole number: what numpy and torch count with."""
NAMES_OF_FILES = frozenset(
    {
        "dir", "path", "store", "cache", "tokenizer", "protected_terms", "decontaminate", "drop_list", "init_from",
        "preset", "config", "log_dir",
    }
)  # fmt: skip
"""Keys whose values are opened as files or folders."""


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, docstrings as descriptions, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_usable(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no machine can count or open, so that nothing behind the configuration has to look for it."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"is larger than {LARGEST}")
        if info.field_name in NAMES_OF_FILES:
            texts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(text, str) and "\0" in text for text in texts):
                raise ValueError("no file has a NUL character in its name")
            # A shell leaves `run.dir=~/x` as it is; libraries that expand it would then write elsewhere.
            if isinstance(value, tuple):
                return tuple(_expanded(text) for text in value)
            return _expanded(value)
        return value


class RunSection(Section):
    name: str = Field(default="run", pattern=r"^[\w][\w.\-]*$")
    """Name of the run; the default directory is runs/NAME."""
    dir: str | None = None
    """Run directory: config, metrics, logs and checkpoints. Default: runs/NAME."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of the initial weights and of the order of the data."""


class MixtureSource(Section):
    """One source of `data.mixture`; what is left out is as in the rest of the data section."""

    name: str = Field(pattern=r"^[\w][\w.\-]*$")
    """Name in the log, in metrics.jsonl and in the order of the samples."""
    weight: float
    """Share of the samples, relative to the other weights; shares below 1 must sum to 1."""
    path: Paths = ()
    """As data.path."""
    store: str | None = None
    """As data.store."""
    format: Format | None = None
    """As data.format."""
    text_key: str | None = None
    """As data.text_key."""


def _read_mixture(value: Any) -> Any:
    """`NAME:WEIGHT:PATH`, as on the command line, or a mapping of the fields."""
    value = (value,) if isinstance(value, (str, dict)) else value
    return tuple(_read_source(part) if isinstance(part, str) else part for part in value)


def _read_source(text: str) -> dict[str, str]:
    name, weight, path = (text.split(":", 2) + ["", ""])[:3]
    if not path:
        raise ValueError(
            f"{text!r} is not NAME:WEIGHT:PATH, as in wiki:3:data/wiki.jsonl,web:1:data/web/ "
            "(a path with a comma is written as a list: {name: wiki, weight: 3, path: ['a,b.jsonl']})"
        )
    return {"name": name, "weight": weight, "path": path}


Mixture = Annotated[tuple[MixtureSource, ...], BeforeValidator(_read_mixture)]


class DataSection(Section):
    preset: str | None = None
    """A data preset (wikillm/presets/data)."""
    path: Paths = ()
    """File, folder or glob: .jsonl, .json, .csv, .txt, MediaWiki .xml, each also .gz, .bz2, .xz or .zst; .parquet."""
    mixture: Mixture = ()
    """Several sources by weight, instead of data.path: wiki:3:data/wiki.jsonl,web:1:data/web/, or a list in YAML."""
    format: Format = "auto"
    """Format; auto looks into the file. text: a file is a document; blocks: blank lines between documents; lines: a line is one."""
    text_key: str = "text"
    """Key or column of the document's text."""
    tokenizer: str = "auto"
    """auto, qwen2, a folder with tokenizer.json, or train:8000 for a byte-level BPE of that size on this corpus."""
    backend: Literal["auto", "hf", "fastokens", "tiktoken"] = "auto"
    """Library that encodes; auto takes the fastest that is installed and gives the ids of hf. Never changes the result."""
    store: str | None = None
    """Directory of the token store. Default: stores/FINGERPRINT, shared by all runs on the same data."""
    cache: str | None = None
    """Folder for what is read from http(s)://, s3://, oss:// and hubs. Default: ~/.cache/wikillm/remote."""
    cache_bytes: Size | None = None
    """Most bytes of data in that folder; what was not used for longest makes room. Default: what the disk has."""
    workers: int | None = Field(default=None, ge=1, le=1024)
    """Processes that clean and tokenise. Default: one per core. Never changes the result."""
    shard_bytes: Size | None = None
    """Bytes of decompressed source per shard. Default: a 64th of the source, from 1 MiB to 64 MiB."""
    streaming: Literal["auto", "on", "off"] = "auto"
    """Train while the store is being built: auto does where it has more than one window and the horizon is in steps."""
    window_shards: int = Field(default=8, ge=1, le=2**31)
    """Shards whose samples the first epoch mixes; training starts when so many stand. Later epochs mix all."""
    packing: Packing = "concat"
    """concat cuts the text every T tokens; best_fit keeps documents whole where they fit, with some padding."""
    stall_seconds: float = Field(default=900.0, gt=0)
    """A build that adds no shard for so long, while training waits for one, ends the run."""
    val_fraction: float | Literal["auto"] = Field(default="auto")
    """Share of documents held out by content hash; auto is 0.1 below 256 MB of source, 0.005 above."""
    min_val_tokens: int = Field(default=10_000, ge=1)
    """Fewer held-out tokens than this is an error: a loss on them would be noise."""
    max_text_bytes: Size | None = None
    """Read only the first so many bytes of text, in whole documents. Default: all."""
    max_document_bytes: Size = 16 * 2**20
    """A longer document is dropped and counted."""
    max_field_lines: int = Field(default=1000, ge=1, le=10_000_000)
    """CSV: a quoted field of more lines, or KiB, is an error, since a lost quote looks like that."""
    convert: Literal["none", "t2s", "tw2s", "tw2sp", "hk2s"] = "none"
    """Convert to simplified Chinese with OpenCC: t2s characters, tw2sp also Taiwan's words. Needs wikillm[wiki]."""
    protected_terms: str | None = None
    """File of terms, one per line, that data.convert leaves as they are."""
    quality: Literal["none", "basic", "zh", "en"] = "none"
    """Drop texts by rule: too short, repetitive, lists, symbols; zh and en also those of another script."""
    decontaminate: Paths = ()
    """Evaluation files (.jsonl, .json, .csv, or .txt with a line per example): documents that hold one are dropped."""
    decontaminate_units: int = Field(default=13, ge=5, le=100)
    """Length of the runs of words or hanzi that are looked for."""
    decontaminate_share: float = Field(default=0.5, gt=0, le=1)
    """Share of an example's runs that a document must hold to be dropped."""
    dedup: Literal["none", "exact", "minhash"] = "none"
    """Drop copies of earlier documents: exact ones, or also near ones (minhash, needs wikillm[wiki]). Reads twice."""
    dedup_similarity: float = Field(default=0.8, ge=0.7, le=1)
    """For minhash: Jaccard similarity of the sets of runs of five words or hanzi from which two are copies."""
    drop_list: str | None = None
    """The copies to drop, found before by `wikillm prepare --drop-list-only FILE` from the same sources."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """More unreadable records than this share end the build."""


class ModelSection(Section):
    preset: str = "120m"
    """A model preset (`wikillm presets`)."""
    architecture: Literal["qwen2", "qwen3"] = "qwen2"
    """qwen2 (biases on q, k, v) or qwen3 (RMSNorm on q and k)."""
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
    zero_init_outputs: bool = False
    """Start o_proj and down_proj at 0, so that each layer begins as the identity (arXiv:1901.09321)."""
    vocab_size: int | Literal["auto"] = "auto"
    """Rows of the embedding; auto is 151936 for Qwen2's tokenizer and otherwise its length rounded up to 128."""
    init_from: str | None = None
    """Folder of a Hugging Face model to continue from; its config replaces the preset's shape."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention kernel, in Hugging Face's name. The last two train on a GPU only."""


class TrainSection(Section):
    sequence_length: int = Field(default=512, ge=2, le=2**31)
    """Tokens per sequence (T)."""
    sequence_parallel_size: int = Field(default=1, ge=1, le=2**16)
    """Ranks that share each sequence (Ulysses, arXiv:2309.14509): memory for long sequences. Divides ranks, heads and T."""
    document_mask: Literal["on", "off"] = "off"
    """on: attention stays within documents, and positions begin anew with each; off: it sees the whole sequence."""
    global_batch_tokens: Count | None = None
    """Tokens per optimizer step over all ranks; accumulation is derived, so 1 GPU and 64 train the same."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] = "auto"
    """Sequences per rank and micro-step; auto: the most that divide a rank's share of the batch, keep below
    max_micro_batch_tokens and fit a GPU's memory by the planner's estimate."""
    max_micro_batch_tokens: Count = 16_384
    """Tokens of a rank's micro-step that per_device_train_batch_size=auto does not exceed; a sequence is never cut."""
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, le=2**31)
    """Hugging Face's way to set the batch: micro x accumulation x world. Excludes global_batch_tokens."""
    batch_ramp_from: Count | None = None
    """Begin with a global batch of so many tokens, which doubles up to global_batch_tokens. Default: no ramp."""
    batch_ramp_tokens: Count | None = None
    """Tokens until the batch is full; each size has an equal share of them."""
    per_device_eval_batch_size: int | None = Field(default=None, ge=1, le=2**20)
    """Sequences per rank in evaluation. Default: per_device_train_batch_size."""
    max_tokens: Count | None = None
    """Horizon in tokens. Exactly one of max_tokens, max_steps, num_train_epochs."""
    max_steps: Count | None = None
    """Horizon in optimizer steps."""
    num_train_epochs: float | None = Field(default=None, gt=0)
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
    """Schedule after warm-up; warmup_stable_decay keeps the peak and decays at the end (arXiv:2404.06395)."""
    lr_decay_share: float = Field(default=0.2, gt=0, le=1)
    """Share of all steps that warmup_stable_decay decays over, down to 0."""
    lr_decay_type: Literal["1-sqrt", "linear"] = "1-sqrt"
    """Shape of that decay; 1-sqrt was the better of the two in arXiv:2405.18392."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Final share of the peak, for cosine_with_min_lr."""
    warmup_steps: float = Field(default=200, ge=0)
    """Steps of linear warm-up; below 1 a share of all steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the layers' matrices, AdamW for embeddings, head, norms and biases; needs max_grad_norm=0."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """Muon's peak learning rate, beside learning_rate for AdamW's share; both follow the schedule."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum (Nesterov)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; norms and biases are exempt."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first moment decay."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second moment decay."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient to this norm; 0 switches clipping off."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the hardware has it, else fp16, fp32 on CPU."""
    loss_kernel: Literal["auto", "chunked", "triton", "fp8", "stock"] = "auto"
    """Loss: chunked, triton (GPU only) and fp8 (8-bit products) keep no logits, stock is Hugging Face's; auto takes chunked."""
    mlp_kernel: Literal["stock", "tiled"] = "stock"
    """tiled: MLPs over chunks of tokens, computed again in the backward pass; memory for long sequences, more compute."""
    compile: Literal["off", "layers", "elementwise"] = "off"
    """torch.compile, in a minute at the first step. layers: one graph per layer, not with ZeRO-3; elementwise: norms, rotation, SwiGLU."""
    z_loss: float = Field(default=0.0, ge=0)
    """Coefficient of logsumexp^2, added to the training loss and logged apart from it; PaLM's is 1e-4. 0: none."""
    gradient_checkpointing: Annotated[Checkpointing, ALSO_A_SWITCH] = "none"
    """Recompute activations in the backward pass, for memory: selective keeps the products, full (or true) only inputs."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Keep a moving average of the weights with this decay, for `wikillm export --ema`; 0: none. Not with ZeRO-3."""
    ema_start: float = Field(default=0.8, ge=0, lt=1)
    """Share of the steps after which the average begins."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between log lines."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations. Default: at the end only."""
    max_eval_tokens: Count | None = None
    """Evaluate on the first so many held-out tokens. Default: all of them."""
    save_steps: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints; one is always written at the end."""
    max_hours: float | None = Field(default=None, gt=0)
    """Save and exit with 75 before so many hours since the start of the process, or of the Slurm job, are over."""
    save_total_limit: int = Field(default=3, ge=1, le=2**31)
    """Complete checkpoints to keep."""
    dataloader_num_workers: int = Field(default=0, ge=0, le=1024)
    """Loader processes per rank; 0 reads in the training process (a read is a memory-mapped copy)."""
    max_skipped_steps: int = Field(default=20, ge=1)
    """fp16 only: so many steps skipped in a row by the loss scaler stop the run."""
    exit_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a rank waits for the others before it exits."""
    supervise: Literal["auto", "on", "off"] = "auto"
    """Watch the ranks from outside; end the run and name the rank when one is lost or stalls. on: over the network also on one node."""
    lost_seconds: float = Field(default=20.0, ge=5)
    """A node without a sign of life for so long is lost."""
    stall_seconds: float = Field(default=120.0, gt=0)
    """Steps that stand still for so long, and for 10 median steps, end the run; other phases have longer limits."""
    meet_seconds: float = Field(default=50.0, gt=0)
    """How long the nodes wait for each other at the start."""


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
    """Where SwanLab keeps its files. Default: RUN/swanlog."""
    finish_timeout_seconds: float = Field(default=15.0, gt=0)
    """How long the end of training waits for the tracker."""


class ObserveSection(Section):
    swanlab: SwanLabSection = SwanLabSection()
    sample_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between sample generations. Default: at each evaluation."""
    sample_prompts: Paths = ("中国的首都是", "The history of", "")
    """Prompts of the samples; an empty one starts from the end-of-text token."""
    sample_tokens: int = Field(default=48, ge=1, le=2**31)
    """New tokens per sample."""


class DeepSpeedSection(Section):
    config: str | None = None
    """A DeepSpeed JSON: a file, or the name of a shipped one (zero2). Default: none, plain data parallel."""


class RunConfig(Section):
    """A whole run. Values come from: defaults < presets < file < command line (`wikillm config show --origin`)."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    observe: ObserveSection = ObserveSection()
    deepspeed: DeepSpeedSection = DeepSpeedSection()
