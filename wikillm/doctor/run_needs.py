"""Computes the needs of a run with the planner's formulas."""

from __future__ import annotations

import os
from dataclasses import astuple
from functools import partial

from wikillm.checkpoints.retention import keep_of
from wikillm.config.precision import resolve_precision
from wikillm.config.resolved import Resolved
from wikillm.config.schema_data import DataSection
from wikillm.core.errors import ConfigError
from wikillm.data.fetch.remote import scheme_of
from wikillm.doctor.needs import Needs
from wikillm.plan.batch import split_batch
from wikillm.plan.check_recipe import check_recipe
from wikillm.plan.checkpoint import checkpoint_bytes, checkpoints_at_most
from wikillm.plan.memory import host_bytes_per_rank
from wikillm.plan.strategy import strategy_of
from wikillm.plan.workload import describe_workload
from wikillm.remote.environment import is_forwarded


def needs_of(
    resolved: Resolved, *, nodes: int, slots: int, master: str = "", master_port: int = 0
) -> Needs:
    """The needs of this run on each of `nodes` machines with `slots` processes.

    Raises ConfigError for an invalid run. A batch that does not divide is a finding instead.
    """
    cfg = resolved.config
    ranks = nodes * slots
    check_recipe(resolved, ranks=ranks, ranks_per_node=slots)
    workload = describe_workload(resolved, ranks=cfg.train.sequence_parallel_size)
    recipe = cfg.deepspeed.config
    # Host memory and checkpoint size do not depend on the micro-batch.
    strategy = strategy_of(
        cfg.model,
        cfg.train,
        recipe,
        ranks=ranks,
        ranks_per_node=slots,
        precision=resolve_precision(cfg.train.precision, has_gpu=True, has_bf16=True),
    )
    written = partial(
        checkpoint_bytes, cfg.model, muon=strategy.muon, ema=strategy.ema, ranks=ranks
    )
    # Without the tokenizer, the size of the embedding is an estimate.
    is_sure = cfg.data.tokenizer != "auto" or isinstance(cfg.model.vocab_size, int)
    compiles = cfg.train.compile != "off"
    named, local = sources_of(cfg.data)
    store = cfg.data.store or "stores"
    is_remote = bool(scheme_of(store))
    return Needs(
        nodes=nodes,
        slots=slots,
        master=master,
        master_port=master_port,
        run_dir=cfg.run.dir or f"runs/{cfg.run.name}",
        store_dir=cfg.data.cache or os.path.expanduser("~/.cache/wikillm/remote")
        if is_remote
        else store,
        data_path=local,
        has_source=bool(local) or not (named or cfg.data.mixture or is_remote),
        data_format=cfg.data.format,
        text_key=cfg.data.text_key,
        keep=astuple(keep_of(cfg.train)),
        precision=cfg.train.precision,
        compiles=compiles,
        gpu_ops=("cpu_adam",) * strategy.offload_optimizer + ("quantizer",) * strategy.quantized,
        # DeepSpeed's Muon compiles its Newton-Schulz steps by torch.
        uses_triton=compiles
        or cfg.train.loss_kernel == "triton"
        or (strategy.muon and recipe is not None),
        recipe=recipe or "",
        checkpoint=written(workload.vocab_size),
        least_checkpoint=written(workload.vocab_size, embedding_is_sure=is_sure),
        checkpoints_kept=checkpoints_at_most(cfg.train, workload.max_steps),
        host_memory=host_bytes_per_rank(workload, strategy) * slots,
        batch_error=_batch_error(resolved, ranks),
        not_forwarded=_not_forwarded() if nodes > 1 else (),
        chooses_card=cfg.train.supervise != "off",
    )


def sources_of(data: DataSection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all sources in data.path or data.mixture, those of them that are paths)."""
    named = tuple(data.path) or tuple(path for source in data.mixture for path in source.path)
    return named, tuple(path for path in named if not scheme_of(path))


def _batch_error(resolved: Resolved, ranks: int) -> str:
    try:
        split_batch(resolved.config.train, resolved.origins, ranks)
    except ConfigError as error:
        return f"{error.what} {(error.fix or '').partition(chr(10))[0]}"
    return ""


def _not_forwarded() -> tuple[str, ...]:
    """Variables set here that a run reads and that are not forwarded to other nodes."""
    read = ("HF_", "TRANSFORMERS_", "CUDA_", "TORCH_", "UCX_", "FI_", "OMPI_", "PYTORCH_", "DS_")
    own = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME")
    names = (name for name in os.environ if name.startswith(read) and not is_forwarded(name))
    return tuple(sorted(name for name in names if name not in own))
