"""What a run needs of its machines, by the planner's formulas, and what to inspect there.

`Request` goes to every node before anything is known about it; checks compare the facts
with `Needs`. Sizes are estimates in bytes; `least_checkpoint` is a lower bound, so that a refusal
may rest on it.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, field
from functools import partial

from wikillm.checkpoints.retention import keep_of
from wikillm.config.precision import resolve_precision
from wikillm.config.resolved import Resolved
from wikillm.config.schema import DataSection
from wikillm.core.errors import ConfigError
from wikillm.data.fetch.remote import is_offline, scheme_of
from wikillm.plan.batch import split_batch
from wikillm.plan.check_recipe import check_recipe
from wikillm.plan.checkpoint import checkpoint_bytes, checkpoints_at_most
from wikillm.plan.communication import communication_per_step
from wikillm.plan.memory import host_bytes_per_rank
from wikillm.plan.strategy import strategy_of
from wikillm.plan.workload import describe_workload
from wikillm.remote.environment import is_forwarded


@dataclass(frozen=True, slots=True)
class Request:
    """What to inspect on a node. Paths are those of the run, on that node."""

    run_dir: str
    store_dir: str
    data_path: tuple[str, ...]
    master: str
    master_port: int
    servers: dict[str, str]  # name -> web address
    has_source: bool = True  # False: only addresses or finished stores are named
    keep: tuple[int, int | None, int] = (1, None, 0)  # the fields of checkpoints.retention.Keep


@dataclass(frozen=True, slots=True)
class Needs:
    """`slots`: processes per node. `recipe`: the DeepSpeed recipe, "" without one."""

    nodes: int = 1
    slots: int = 1
    precision: str = "auto"
    compiles: bool = False
    recipe: str = ""
    offload: bool = False
    checkpoint: int = 0
    least_checkpoint: int = 0
    checkpoints_kept: int = 1
    host_memory: int = 0
    traffic: int = 0  # between nodes, per GPU and optimizer step
    batch_error: str = ""
    not_forwarded: tuple[str, ...] = field(default=())

    @property
    def ranks(self) -> int:
        return self.nodes * self.slots


def request_of(resolved: Resolved, *, master: str, master_port: int) -> Request:
    """What to inspect for this run."""
    cfg = resolved.config
    named, local = sources_of(cfg.data)
    store = cfg.data.store or "stores"
    is_remote = bool(scheme_of(store))
    return Request(
        run_dir=cfg.run.dir or f"runs/{cfg.run.name}",
        store_dir=cfg.data.cache or "~/.cache/wikillm/remote" if is_remote else store,
        data_path=local,
        has_source=bool(local) or not (named or cfg.data.mixture or is_remote),
        keep=astuple(keep_of(cfg.train)),
        master=master,
        master_port=master_port,
        servers={} if is_offline() else server_addresses(),
    )


def sources_of(data: DataSection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all sources in data.path or data.mixture, the sources among them that are paths)."""
    named = tuple(data.path) or tuple(path for source in data.mixture for path in source.path)
    return named, tuple(path for path in named if not scheme_of(path))


def server_addresses() -> dict[str, str]:
    """Servers of tokenizers, models and tracking: name -> address."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return {
        "huggingface": "https://huggingface.co",
        "hf-mirror": endpoint or "https://hf-mirror.com",
        "modelscope": "https://modelscope.cn",
        "swanlab": os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn/api"),
    }


def needs_of(resolved: Resolved, *, nodes: int, slots: int, has_gpu: bool = True) -> Needs:
    """What this run needs of `nodes` machines with `slots` processes each.

    Raises ConfigError for a wrong run; a batch that does not divide is one of the findings.
    """
    cfg = resolved.config
    ranks = nodes * slots
    check_recipe(resolved, ranks=ranks, ranks_per_node=slots)
    shared = cfg.train.sequence_parallel_size
    workload = describe_workload(resolved, ranks=shared)
    batch_error = ""
    try:
        split_batch(cfg.train, resolved.origins, ranks)
    except ConfigError as error:
        batch_error = f"{error.what} {(error.fix or '').partition(chr(10))[0]}"
    # The micro-batch does not matter for host memory, traffic and the ZeRO stage.
    recipe = cfg.deepspeed.config
    strategy = strategy_of(
        cfg.model,
        cfg.train,
        recipe,
        ranks=ranks,
        ranks_per_node=slots,
        accumulation=max(1, workload.sequences * shared // ranks),
        precision=resolve_precision(cfg.train.precision, has_gpu=True, has_bf16=True),
    )
    host = host_bytes_per_rank(workload, strategy) * slots
    # The traffic of plain data parallel is not judged.
    traffic = communication_per_step(workload, strategy).between_nodes if recipe else 0
    written = partial(
        checkpoint_bytes, cfg.model, muon=strategy.muon, ema=strategy.ema, ranks=ranks
    )
    # An unknown tokenizer leaves the size of the embedding open.
    is_sure = cfg.data.tokenizer != "auto" or isinstance(cfg.model.vocab_size, int)
    vocabulary = workload.vocab_size
    return Needs(
        nodes=nodes,
        slots=slots,
        precision=cfg.train.precision,
        compiles=cfg.train.compile != "off",
        recipe=cfg.deepspeed.config or "",
        offload=host > 0,
        checkpoint=written(vocabulary),
        least_checkpoint=written(vocabulary, embedding_is_sure=is_sure),
        checkpoints_kept=checkpoints_at_most(cfg.train, workload.max_steps),
        host_memory=host,
        traffic=traffic,
        batch_error=batch_error,
        not_forwarded=_not_forwarded(),
    )


def _not_forwarded() -> tuple[str, ...]:
    """Variables set here that a run reads and that are not forwarded to other nodes."""
    read = ("HF_", "TRANSFORMERS_", "CUDA_", "TORCH_", "UCX_", "FI_", "OMPI_", "PYTORCH_", "DS_")
    own = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME")
    names = (name for name in os.environ if name.startswith(read) and not is_forwarded(name))
    return tuple(sorted(name for name in names if name not in own))
