"""Open a token store that training can begin on before it is finished: the same builder, running ahead.

`stream_store` is called by every rank before any process group exists. The first rank of each node starts a builder
process; of all builders that reach one folder, one works at a time, so a folder that the nodes share has one builder,
and nodes with folders of their own build the same bytes. Every rank then waits for the first window.
"""

from __future__ import annotations

import time
from dataclasses import replace

from wikillm.config.schema import DataSection
from wikillm.core.errors import ConfigError
from wikillm.core.log import logger, say
from wikillm.core.units import format_count, format_seconds
from wikillm.data.prepare.background import Builder
from wikillm.data.prepare.held_out import refuse_few_held_out
from wikillm.data.prepare.prepare import check_settings, ensure_planned, open_prepared, plan_store
from wikillm.data.read.growing import POLL_SECONDS, Growth
from wikillm.data.sources.read import estimated_bytes
from wikillm.data.store.store import Store

_SAY_EVERY_SECONDS = 10.0


def stream_store(cfg: DataSection, *, is_main: bool, is_local_main: bool) -> Store:
    """Open the store of `cfg` as soon as its first window stands; `growth` says more about the rest. (all ranks)

    A source that fills one window at most is prepared first: there is nothing to run ahead of. The held-out stream is
    that of the first window, whether the store was finished before or not.

    Args:
        is_main: this process tells the user how far the builder is.
        is_local_main: the first rank of its node, which starts the builder.

    Raises what `prepare_store` does, DataError when the builder dies or stalls, and ConfigError for data.streaming=on with
    copies that are still to be found.
    """
    since = time.time()
    check_settings(cfg)
    ready = open_prepared(cfg, is_main=is_main)
    if ready is not None:
        return _with_first_window(ready, cfg)
    _say_copies_come_first(cfg, is_main)
    plan = replace(plan_store(cfg, is_main=is_main), is_read=True)
    size = min(estimated_bytes(plan.sources), plan.max_text_bytes or estimated_bytes(plan.sources))
    if cfg.streaming == "auto" and size <= cfg.window_shards * plan.shard_bytes:
        return _with_first_window(
            ensure_planned(replace(plan, is_read=False), is_main=is_main), cfg
        )
    growth = Growth(plan, cfg.window_shards, cfg.stall_seconds, since)
    growth.refresh()
    if is_local_main and not growth.is_complete:
        growth.builder = Builder(plan)
    try:
        _wait_for_first_window(growth, is_main)
        val = growth.first_window("val")
        store = Store(plan.store, growth.describe(), growth.train, val, growth)
        refuse_few_held_out(store, growth.first_window("train"), val, cfg)
        if is_main and not growth.is_complete:
            say(
                f"data: training starts on the first {growth.shards_in_windows} shards "
                f"({format_count(growth.train.n_tokens)} tokens) while the rest is built"
            )
    except BaseException:
        growth.stop()
        raise
    return store


def _say_copies_come_first(cfg: DataSection, is_main: bool) -> None:
    """Copies are known when all is read: there is no streaming before that. `data.streaming=on` does not put up with it."""
    if cfg.dedup == "none" or cfg.drop_list is not None:
        return
    make = "wikillm prepare ... --drop-list-only FILE, then data.drop_list=FILE"
    if cfg.streaming == "on":
        raise ConfigError(
            "Training that streams needs a drop-list, or data.dedup=none: finding the copies reads all sources first.",
            got=f"data.streaming=on, data.dedup={cfg.dedup}",
            fix=f"{make}; or data.streaming=auto, which finds the copies and then streams",
        )
    if is_main:
        say(
            f"data: data.dedup={cfg.dedup} reads all sources before training starts; ahead of time: {make}"
        )


def _with_first_window(store: Store, cfg: DataSection) -> Store:
    train, val = (store.first_shards(split, cfg.window_shards) for split in ("train", "val"))
    refuse_few_held_out(store, train, val, cfg)
    return replace(store, val=val)


def _wait_for_first_window(growth: Growth, is_main: bool) -> None:
    start, said = time.monotonic(), -_SAY_EVERY_SECONDS
    while not growth.shards_in_windows and not growth.is_complete:
        waited = time.monotonic() - start
        if waited - said >= _SAY_EVERY_SECONDS:
            said = waited
            line = f"waiting for the first {growth.window_shards} shards, {format_seconds(waited)} so far"
            line += f": {growth.progress()}"
            say(line) if is_main else logger.info(line)
        trouble = growth.trouble(start)
        growth.refresh()
        if trouble is not None and not growth.shards_in_windows and not growth.is_complete:
            raise trouble
        time.sleep(POLL_SECONDS)
