"""Add the drop-list of `data.dedup` or `data.drop_list` to a plan, so that duplicates are dropped.

A first pass over the sources makes the drop-list, unless `data.drop_list` names a list that
`wikillm prepare --drop-list-only FILE` has made. In both cases the facts contain the hash of the
list and the settings that made it. So a store built from a given list has the same bytes and
fingerprint as a store whose build finds the duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError, MachineError
from wikillm.core.log import say
from wikillm.data.dedup.minhash import minhash_facts
from wikillm.data.dedup.two_passes import FirstPass
from wikillm.data.filters.drop_list import DropList, read_drop_list, write_drop_list
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.store.manifest import differences, fingerprint_of
from wikillm.data.workers.exclusive import beside

DEDUP_VERSION = 2
"""Part of the fingerprint: raise it whenever the definition of a duplicate changes."""
_DECIDES_NO_DUPLICATE = ("data.tokenizer", "data.val_fraction", "eos", "format_version")


@dataclass(frozen=True, slots=True)
class Deduplication:
    """How duplicates are found.

    Attributes:
        facts: the settings that decide what is a duplicate.
        given: the list of `data.drop_list`, if it is set.
        made_from: the facts from which `given` was made.
    """

    facts: dict[str, Any]
    given: DropList | None = None
    made_from: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, cfg: DataSection) -> Deduplication | None:
        """The settings of `cfg`; None when duplicates are kept.

        Raises ConfigError for a missing package, DataError for a drop-list that is damaged or was
        made with another `data.dedup`.
        """
        if cfg.drop_list is None:
            return None if cfg.dedup == "none" else cls(dedup_facts(cfg))
        given, made_from = read_drop_list(Path(cfg.drop_list))
        facts = made_from.get("data.dedup", {})
        if facts.get("version") != DEDUP_VERSION:
            wanted = f"version {DEDUP_VERSION} of the rules"
            raise _refused(cfg.drop_list, {"data.dedup": facts}, {"data.dedup": wanted})
        if cfg.dedup != "none" and facts != (own := dedup_facts(cfg)):
            raise _refused(cfg.drop_list, {"data.dedup": facts}, {"data.dedup": own})
        return cls(facts, given, made_from)

    def apply(self, plan: BuildPlan, cfg: DataSection, folder: Path, is_main: bool) -> BuildPlan:
        """The plan with its drop-list, whose hash is added to the facts. (all ranks)

        The list is made if it is missing. Raises DataError when `data.drop_list` was made from
        other sources or settings.
        """
        if self.given is None:
            drops = _first_pass(plan, cfg, self.facts, folder).ensure(is_main=is_main)
        else:
            made = dict(self.made_from or {})
            wanted = _made_from(plan, self.facts)
            if made != wanted:
                raise _refused(str(cfg.drop_list), made, wanted)
            drops = self.given
            if is_main:
                counts = f"{drops.exact:,} exact and {drops.near:,} near duplicates"
                say(f"data: {counts} are dropped ({cfg.drop_list})")
        facts = {**plan.facts, "data.dedup": {**self.facts, "drop_list": drops.sha256}}
        store = Path(cfg.store) if cfg.store else folder / fingerprint_of(facts)[:12]
        return replace(plan, store=store, facts=facts, drop_list=drops)


def write_drop_list_of(plan: BuildPlan, path: Path) -> DropList:
    """Write the drop-list of a plan to its own file, with the facts that decide its content.

    Raises MachineError if the file cannot be written.
    """
    assert plan.drop_list is not None, "the caller refuses data.dedup=none"
    dedup = {name: value for name, value in plan.facts["data.dedup"].items() if name != "drop_list"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_drop_list(path, plan.drop_list, _made_from(plan, dedup))
    except OSError as error:
        got = f"{path}: {error.strerror}"
        raise MachineError("The drop-list cannot be written.", got=got) from None
    return plan.drop_list


def dedup_facts(cfg: DataSection) -> dict[str, Any]:
    """The facts that decide what is a duplicate. Raises ConfigError for a missing package."""
    facts: dict[str, Any] = {"kind": cfg.dedup, "version": DEDUP_VERSION}
    if cfg.dedup == "minhash":
        facts |= {"similarity": cfg.dedup_similarity, "signature": minhash_facts()}
    return facts


def _made_from(plan: BuildPlan, dedup: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that decide a drop-list. They include shard_bytes if data.max_text_bytes is set."""
    ignored = {*_DECIDES_NO_DUPLICATE, *(() if plan.max_text_bytes else ("shard_bytes",))}
    facts = {name: value for name, value in plan.facts.items() if name not in ignored}
    return {**facts, "data.dedup": dict(dedup)}


def _first_pass(
    plan: BuildPlan, cfg: DataSection, dedup: dict[str, Any], stores: Path
) -> FirstPass:
    facts = {name: fact for name, fact in plan.facts.items() if name not in _DECIDES_NO_DUPLICATE}
    folder = stores.absolute() / f".dedup-{fingerprint_of({**facts, 'data.dedup': dedup})[:12]}"
    return FirstPass(
        folder=folder,
        reader=plan.reader,
        clean=plan.clean_job,
        max_bad_fraction=plan.max_bad_fraction,
        workers=plan.workers,
        similarity=cfg.dedup_similarity if cfg.dedup == "minhash" else None,
        wanted_text=plan.max_text_bytes,
        relay=beside(folder, ".progress"),
    )


def _refused(name: str, list_facts: Mapping[str, Any], needed: Mapping[str, Any]) -> DataError:
    command = f"wikillm prepare ... --drop-list-only {name}"
    lines = differences(list_facts, needed, "the list was made with", "this run has")
    return DataError(
        "The drop-list was made from other sources or settings.",
        got="\n".join([f"data.drop_list={name}", *lines]),
        fix=f"use the settings of the list, or make the list again: {command}",
    )
