"""Opens the token store that a run has read, from what its directory says. Builds nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError, DataError
from wikillm.data.fetch.cache import Cache
from wikillm.data.fetch.remote import scheme_of
from wikillm.data.read.corpus import Corpus, StoredCorpus, WeightedStore, proportions
from wikillm.data.read.mixed import MixedCorpus
from wikillm.data.store.remote_store import open_remote
from wikillm.data.store.store import Store


def corpus_of_run(run: Path, order: Mapping[str, Any], places: Sequence[str] = ()) -> Corpus:
    """The corpus of a run whose ledger has these `order` facts.

    Args:
        places: where the store is now, a folder or an address; of a mixture, NAME=PLACE of each
            source that was moved. By default where RUN/data.json says.

    Raises:
        ConfigError: `places` do not fit the run.
        DataError: no data.json; a store that cannot be opened, or is another one.
    """
    record = _data_record(run)
    moved = dict(place.partition("=")[::2] for place in places if record.get("mixture"))
    names = [source["name"] for source in record.get("mixture", ())]
    if set(moved) - set(names) or (not names and len(places) > 1):
        raise ConfigError(
            "--store does not fit the run.",
            got=", ".join(places),
            fix=f"--store NAME=PLACE, of: {', '.join(names)}" if names else "--store PLACE",
        )
    corpus: Corpus
    if names:
        sources = [
            WeightedStore(one["name"], one["count"], _open(one["store"], moved.get(one["name"])))
            for one in record["mixture"]
        ]
        corpus = MixedCorpus(sources, order["window_shards"], order["packing"])
    else:
        store = _open(record["store"], places[0] if places else None)
        corpus = StoredCorpus(store, order["window_shards"], order["packing"])
    found = (corpus.manifest.fingerprint, proportions(corpus.mixture))
    if found != (order["store"], order["mixture"]):
        raise DataError(
            "The run has read another token store.",
            got=f"{corpus.dir}: {found[0][:12]}; the ledger has {order['store'][:12]}",
            fix="--store PLACE of the store that it was trained on",
        )
    return corpus


def _data_record(run: Path) -> dict[str, Any]:
    path = run / "data.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError("A run does not say which store it read.", got=f"{path}: {error}") from None


def _open(recorded: str, given: str | None) -> Store:
    if given is not None and scheme_of(given):
        return open_remote(given, Cache())
    try:
        return Store.open(Path(given or recorded))
    except DataError as error:
        fix = "--store PLACE: its folder, or its address; a store still being built: finish it"
        raise DataError(error.what, error.got, f"{fix} with\n`wikillm prepare`") from None
