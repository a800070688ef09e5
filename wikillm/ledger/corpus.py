"""Open the token store that a run has read, which its data.json names. Nothing is built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import read_regular
from wikillm.data.fetch.cache import Cache
from wikillm.data.fetch.remote import scheme_of
from wikillm.data.read.corpus import Corpus, StoredCorpus, WeightedStore, proportions
from wikillm.data.read.mixed import MixedCorpus
from wikillm.data.store.remote_store import open_remote
from wikillm.data.store.store import Store


def corpus_of_run(run: Path, order: Mapping[str, Any], places: Sequence[str] = ()) -> Corpus:
    """The corpus of a run. `order` is recorded in its ledger (see `record.Segment`).

    Args:
        places: folder or address of the store, if it is not the place in RUN/data.json. For a
            mixture NAME=PLACE, for each source that was moved.

    Raises:
        ConfigError: `places` do not fit the run.
        DataError: no data.json; a store that cannot be opened, or that the run has not read.
    """
    # Refuse places that name no source of the run.
    record = _data_record(run)
    moved = dict(place.partition("=")[::2] for place in places if record.get("mixture"))
    names = [source["name"] for source in record.get("mixture", ())]
    if set(moved) - set(names) or (not names and len(places) > 1):
        raise ConfigError(
            "--store does not fit the run.",
            got=", ".join(places),
            fix=f"--store NAME=PLACE, with a NAME of {', '.join(names)}"
            if names
            else "pass --store once, with the folder or address of the store",
        )
    # Open the stores at these places, or at the recorded places.
    corpus: Corpus
    if names:
        sources = [
            WeightedStore(name, part["count"], _open(part["store"], moved.get(name)))
            for name, part in zip(names, record["mixture"], strict=True)
        ]
        corpus = MixedCorpus(sources, order["window_shards"], order["packing"])
    else:
        store = _open(record["store"], places[0] if places else None)
        corpus = StoredCorpus(store, order["window_shards"], order["packing"])
    # Refuse stores other than those that the ledger names.
    found = (corpus.manifest.fingerprint, proportions(corpus.mixture))
    if found != (order["store"], order["mixture"]):
        raise DataError(
            "This is not the token store that the run has read.",
            got=f"{corpus.dir} has the fingerprint {found[0][:12]}, "
            f"the ledger has {order['store'][:12]}",
            fix="pass --store the folder or address of the store that the run was trained on",
        )
    return corpus


def _data_record(run: Path) -> dict[str, Any]:
    path = run / "data.json"
    try:
        record = dict(json.loads(read_regular(path)))
        for source in record.get("mixture") or [{"name": "", "count": 0, **record}]:
            if [type(source[key]) for key in ("name", "store", "count")] != [str, str, int]:
                raise TypeError(f"a source is {source!r}")
        return record
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        what = "The run's record of its token store cannot be read."
        raise DataError(what, got=f"{path}: {error}") from None


def _open(recorded: str, moved_to: str | None) -> Store:
    if moved_to is not None and scheme_of(moved_to):
        return open_remote(moved_to, Cache())
    try:
        return Store.open(Path(moved_to or recorded))
    except DataError as error:
        fix = "pass --store the folder or address of the store; finish an unfinished store with"
        raise DataError(error.what, error.got, f"{fix}\n`wikillm prepare`") from None
