"""What a run asks of its machines, by the planner's formulas, and what has to be looked at to judge them.

`Request` goes to every node before anything is known about it; `Needs` is what the judgements compare with. Sizes are
bytes and estimates; `least_*` are lower bounds that a refusal may rest on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from wikillm.config.resolved import Resolved
from wikillm.config.schema import DataSection, RunConfig
from wikillm.core.errors import ConfigError
from wikillm.data.fetch.remote import is_offline, scheme_of
from wikillm.plan.batch import split_batch
from wikillm.plan.checkpoint import Written, checkpoint_bytes
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import find_gpu
from wikillm.plan.job import Job, describe_job
from wikillm.plan.memory import host_bytes_per_rank
from wikillm.plan.recipe import check_recipe
from wikillm.plan.setup import Setup, setup_from_recipe


@dataclass(frozen=True, slots=True)
class Request:
    """What a node looks at. Paths are those of the run, on that node."""

    run_dir: str
    store_dir: str
    data_path: tuple[str, ...]
    master: str
    master_port: int
    hubs: dict[str, str]  # name -> web address
    has_source: bool = True  # False: only addresses or finished stores are named
    checkpoints_kept: int = 1  # train.save_total_limit


@dataclass(frozen=True, slots=True)
class Needs:
    """`slots` are the processes of a node. `precision` may be auto. `recipe` is the DeepSpeed recipe, "" for none."""

    nodes: int = 1
    slots: int = 1
    master: str = ""
    precision: str = "auto"
    compiles: bool = False
    recipe: str = ""
    offload: bool = False
    parameters: int = 0
    checkpoint: int = 0
    least_checkpoint: int = 0
    checkpoints_kept: int = 1
    host_memory: int = 0
    traffic: int = 0  # between nodes, per GPU and optimizer step
    batch_error: str = ""
    online_tracking: bool = False
    not_forwarded: tuple[str, ...] = field(default=())

    @property
    def ranks(self) -> int:
        return self.nodes * self.slots


def request_of(resolved: Resolved, *, master: str, master_port: int) -> Request:
    """What to look at for this run."""
    cfg = resolved.config
    named, local = sources_of(cfg.data)
    store = cfg.data.store or "stores"
    return Request(
        run_dir=cfg.run.dir or f"runs/{cfg.run.name}",
        store_dir=cfg.data.cache or "~/.cache/wikillm/remote" if scheme_of(store) else store,
        data_path=local,
        has_source=bool(local) or not (named or cfg.data.mixture or scheme_of(store)),
        checkpoints_kept=cfg.train.save_total_limit,
        master=master,
        master_port=master_port,
        hubs={} if is_offline() else hub_addresses(),
    )


def sources_of(data: DataSection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all that data.path or the sources of data.mixture name, those of it that are paths and not addresses)."""
    named = tuple(data.path) or tuple(path for source in data.mixture for path in source.path)
    return named, tuple(path for path in named if not scheme_of(path))


def hub_addresses() -> dict[str, str]:
    """Who may be asked for a tokenizer, a model or tracking, in the form name -> address."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return {
        "huggingface": "https://huggingface.co",
        "hf-mirror": endpoint or "https://hf-mirror.com",
        "modelscope": "https://modelscope.cn",
        "swanlab": os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn/api"),
    }


def needs_of(
    resolved: Resolved, *, nodes: int, slots: int, master: str = "", has_gpu: bool = True
) -> Needs:
    """What this run asks of `nodes` machines with `slots` processes each.

    Raises ConfigError when the run is wrong in itself; a batch that does not divide is one of the findings."""
    cfg = resolved.config
    check_recipe(resolved, ranks=nodes * slots, ranks_per_node=slots)
    job = describe_job(resolved, ranks=cfg.train.sequence_parallel_size, gpu=find_gpu("h100"))
    host, traffic = _host_and_traffic(resolved, job, nodes, slots)
    checkpoint, least = _checkpoint(resolved, job, nodes * slots, has_gpu=has_gpu)
    return Needs(
        nodes=nodes,
        slots=slots,
        master=master,
        precision=cfg.train.precision,
        compiles=cfg.train.compile != "off",
        recipe=cfg.deepspeed.config or "",
        offload=host > 0,
        parameters=job.shape.parameters,
        checkpoint=checkpoint,
        least_checkpoint=least,
        checkpoints_kept=cfg.train.save_total_limit + 1,  # one more while the next is written
        host_memory=host,
        traffic=traffic,
        batch_error=_batch_error(resolved, nodes * slots),
        online_tracking=cfg.observe.swanlab.mode == "online",
        not_forwarded=_not_forwarded(),
    )


def _checkpoint(resolved: Resolved, job: Job, ranks: int, *, has_gpu: bool) -> tuple[int, int]:
    """(bytes of a checkpoint, bytes that it has whatever tokenizer is found)."""
    cfg = resolved.config
    precision = "fp32" if cfg.train.precision == "auto" and not has_gpu else job.precision
    stage = None if cfg.deepspeed.config is None else setup_of(cfg, job, ranks, ranks).stage
    written = Written(
        precision, stage, cfg.train.optimizer == "muon", cfg.train.ema_decay > 0, ranks
    )
    is_sure = cfg.data.tokenizer != "auto" or isinstance(cfg.model.vocab_size, int)
    vocabulary = job.shape.vocab_size
    return (
        checkpoint_bytes(cfg.model, vocabulary, written),
        checkpoint_bytes(cfg.model, vocabulary, written, embedding_is_sure=is_sure),
    )


def _host_and_traffic(resolved: Resolved, job: Job, nodes: int, slots: int) -> tuple[int, int]:
    cfg = resolved.config
    if cfg.deepspeed.config is None:
        return 0, 0
    setup = setup_of(cfg, job, nodes * slots, slots)
    host = host_bytes_per_rank(job.shape, setup) * slots
    return host, communication_per_step(job.shape, setup).between_nodes


def setup_of(cfg: RunConfig, job: Job, ranks: int, ranks_per_node: int) -> Setup:
    """The run's DeepSpeed recipe as the planner sees it; its micro-batch does not matter here."""
    return setup_from_recipe(
        cfg.deepspeed.config or "",
        hidden_size=cfg.model.hidden_size,
        ranks=ranks,
        ranks_per_node=ranks_per_node,
        micro=1,
        accumulation=max(1, job.sequences * job.sequence_parallel // ranks),
        precision=job.precision,
        checkpointing=cfg.train.gradient_checkpointing,
    )


def _batch_error(resolved: Resolved, ranks: int) -> str:
    try:
        split_batch(resolved, ranks)
    except ConfigError as error:
        return f"{error.what} {(error.fix or '').splitlines()[0]}"
    return ""


def _not_forwarded() -> tuple[str, ...]:
    """Variables set here that a run reads and that do not travel to other nodes."""
    from wikillm.remote.environment import is_forwarded

    read = ("HF_", "TRANSFORMERS_", "CUDA_", "TORCH_", "UCX_", "FI_", "OMPI_", "PYTORCH_", "DS_")
    names = (name for name in os.environ if name.startswith(read) and not is_forwarded(name))
    return tuple(
        sorted(name for name in names if name not in ("CUDA_VISIBLE_DEVICES", "CUDA_HOME"))
    )
