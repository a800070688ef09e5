"""From `data.dedup` and `data.drop_list` to a plan that leaves the copies out.

The list of what is dropped is found here by a first pass over the sources, or was made elsewhere by
`wikillm prepare --drop-list-only FILE` and is named in `data.drop_list`. Either way its hash and the settings that made
it are among the facts, in the same words: so the store of a given list has the bytes and the fingerprint of the one
that finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wikillm.config.schema import DataSection
from wikillm.core.errors import ConfigError, DataError, MachineError
from wikillm.core.log import say
from wikillm.data.dedup.minhash import signature_facts
from wikillm.data.dedup.two_passes import FirstPass
from wikillm.data.filters.drop_list import DropList, read_drop_list, write_drop_list
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.store.manifest import fingerprint_of
from wikillm.data.workers.exclusive import beside

DEDUP_VERSION = 2
"""Raise it with every change of what counts as a copy: it is part of the fingerprint."""
_DECIDES_NO_COPY = ("data.tokenizer", "data.val_fraction", "eos", "format_version")


@dataclass(frozen=True, slots=True)
class Copies:
    """How copies are found (`facts`, of `data.dedup`), or the list of them that is there (`data.drop_list`)."""

    facts: dict[str, Any]
    given: DropList | None = None
    made_from: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, cfg: DataSection) -> Copies | None:
        """None when copies are kept.

        Raises ConfigError for a missing extra, DataError for a drop-list that is damaged or of another `data.dedup`.
        """
        if cfg.drop_list is None:
            return None if cfg.dedup == "none" else cls(_facts(cfg))
        given, made_from = read_drop_list(Path(cfg.drop_list))
        facts = made_from.get("data.dedup", {})
        if facts.get("version") != DEDUP_VERSION:
            _refuse(
                cfg.drop_list,
                [_differs("data.dedup", facts, f"version {DEDUP_VERSION} of the rules")],
            )
        if cfg.dedup != "none" and facts != (wanted := _facts(cfg)):
            _refuse(cfg.drop_list, [_differs("data.dedup", facts, wanted)])
        return cls(facts, given, made_from)

    def left_out_of(
        self, plan: BuildPlan, cfg: DataSection, area: Path, is_main: bool
    ) -> BuildPlan:
        """The plan with its drop-list, which is made if need be, and its hash among the facts. (all ranks)

        Raises DataError for a given list that was made from other sources or settings.
        """
        if self.given is None:
            drops = _first_pass(plan, cfg, self.facts, area).ensure(is_main=is_main)
        else:
            self._check_made_for(plan, str(cfg.drop_list))
            drops = self.given
            if is_main:
                say(
                    f"data: {drops.exact:,} exact and {drops.near:,} near copies are left out ({cfg.drop_list})"
                )
        facts = {**plan.facts, "data.dedup": {**self.facts, "drop_list": drops.sha256}}
        fingerprint = fingerprint_of(facts)
        store = Path(cfg.store) if cfg.store else area / fingerprint[:12]
        relay = beside(store.with_name(f".{store.name}"), ".progress")
        return replace(
            plan, store=store, facts=facts, fingerprint=fingerprint, relay=relay, drop_list=drops
        )

    def _check_made_for(self, plan: BuildPlan, name: str) -> None:
        made, wanted = self.made_from or {}, _made_from(plan, self.facts)
        keys = sorted({*made, *wanted})
        lines = [
            _differs(key, made.get(key), wanted.get(key))
            for key in keys
            if made.get(key) != wanted.get(key)
        ]
        if lines:
            _refuse(name, lines)


def write_drop_list_of(plan: BuildPlan, path: Path) -> DropList:
    """Write the drop-list of a plan as a file of its own, with all that decided it.

    Raises ConfigError for a plan that keeps copies, MachineError when the file cannot be written.
    """
    if plan.drop_list is None:
        what = "There is no drop-list to make: data.dedup=none keeps copies."
        raise ConfigError(what, fix="data.dedup=exact, or data.dedup=minhash for near copies too")
    dedup = {name: value for name, value in plan.facts["data.dedup"].items() if name != "drop_list"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_drop_list(path, plan.drop_list, _made_from(plan, dedup))
    except OSError as error:
        raise MachineError(
            "The drop-list cannot be written.", got=f"{path}: {error.strerror}"
        ) from None
    return plan.drop_list


def _facts(cfg: DataSection) -> dict[str, Any]:
    near = (
        {"similarity": cfg.dedup_similarity, "signature": signature_facts()}
        if cfg.dedup == "minhash"
        else {}
    )
    return {"kind": cfg.dedup, "version": DEDUP_VERSION, **near}


def _made_from(plan: BuildPlan, dedup: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a drop-list. The size of shards does only where the text ends in one (data.max_text_bytes)."""
    nothing = (
        _DECIDES_NO_COPY if plan.max_text_bytes is not None else (*_DECIDES_NO_COPY, "shard_bytes")
    )
    return {
        **{name: value for name, value in plan.facts.items() if name not in nothing},
        "data.dedup": dict(dedup),
    }


def _first_pass(plan: BuildPlan, cfg: DataSection, dedup: dict[str, Any], area: Path) -> FirstPass:
    facts = {name: value for name, value in plan.facts.items() if name not in _DECIDES_NO_COPY}
    folder = area.absolute() / f".dedup-{fingerprint_of({**facts, 'data.dedup': dedup})[:12]}"
    return FirstPass(
        folder=folder,
        sources=plan.sources,
        clean=plan.clean_job,
        shard_bytes=plan.shard_bytes,
        max_document_bytes=plan.max_document_bytes,
        max_bad_fraction=plan.max_bad_fraction,
        workers=plan.workers,
        threads=plan.threads,
        similarity=cfg.dedup_similarity if cfg.dedup == "minhash" else None,
        wanted_text=plan.max_text_bytes,
        relay=beside(folder, ".progress"),
    )


def _differs(key: str, made: Any, wanted: Any) -> str:
    return f"{key}: the list was made with {_short(made)}, this run has {_short(wanted)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."


def _refuse(name: str, lines: list[str]) -> None:
    raise DataError(
        "The drop-list was made from other sources or settings.",
        got="\n".join([f"data.drop_list={name}", *lines]),
        fix=f"the same settings here; or make it again with these: wikillm prepare ... --drop-list-only {name}",
    )
