"""Several stores read as one: exact shares, each source in its own order and epochs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.mixture import PERIOD
from wikillm.config.schema_data import MixtureSource
from wikillm.core.errors import DataError
from wikillm.data.inspect.positions import documents_of
from wikillm.data.inspect.summary import summary_json, summary_of
from wikillm.data.order.mixed import MixedOrder, MixtureTable
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.corpus import Corpus, proportions
from wikillm.data.read.open import open_corpus
from wikillm.data.tokenizer.tokenizer import load_tokenizer

T = 16
weights = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(weights)
def test_every_period_has_exactly_its_counts_and_each_source_is_counted_through(
    counts: list[int],
) -> None:
    table, period = MixtureTable(counts), sum(counts)
    sources, within = table.locate(np.arange(3 * period))
    for k, count in enumerate(counts):
        assert np.array_equal(within[sources == k], np.arange(3 * count))
        assert np.count_nonzero(sources[:period] == k) == count
    for sample in {0, 1, period - 1, period, 2 * period + period // 2}:
        assert table.samples_before(sample).tolist() == [
            int((sources[:sample] == k).sum()) for k in range(len(counts))
        ]


@given(weights)
def test_every_beginning_of_a_mixture_has_its_shares(counts: list[int]) -> None:
    table, period = MixtureTable(counts), sum(counts)
    due = np.arange(period + 1)[:, None] * table.counts / period
    assert np.abs(table.before - due).max() <= len(counts)


def test_the_billionth_sample_is_found_by_arithmetic() -> None:
    table = MixtureTable([3000, 1096])
    (source,), (within,) = table.locate([10**12 + 5])
    assert within == table.samples_before(10**12 + 5)[source]
    assert table.samples_before(10**12).sum() == 10**12


@pytest.fixture
def mixed(tmp_path, texts, write_source, settings):
    """`mixed(a=3, b=1)`: a mixture of two sources of very different size."""
    for name, count in (("a", 80), ("b", 25)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_source(folder, "plain.jsonl", texts(count, seed=ord(name)))

    def make(packing: str = "concat", **weights: float):
        sources = [
            MixtureSource(name=name, weight=weight, path=(str(tmp_path / name / "plain.jsonl"),))
            for name, weight in weights.items()
        ]
        return settings(mixture=tuple(sources), val_fraction=0.2, packing=packing, window_shards=8)

    return make


def targets_of(store: Corpus, order: MixedOrder, first: int, stop: int) -> list[tuple[int, ...]]:
    """The targets of each sample, as positions in the joined stream."""
    found = order.target_ranges(np.arange(first, stop))
    return [tuple(t for start, end in ranges for t in range(start, end)) for ranges in found]


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_each_source_is_read_once_per_epoch_of_its_own(mixed, packing):
    store = open_corpus(mixed(a=3, b=1, packing=packing))
    order = store.order(T, 7)
    sizes = [part.store.train.n_tokens for part in store.mixture]
    assert [source.start for source in order.sources] == [0, sizes[0]]
    sources, _ = order.table.locate(np.arange(3000))
    samples = targets_of(store, order, 0, 3000)
    for k, size in enumerate(sizes):
        per_epoch = order.sources[k].order.blocks_per_epoch
        mine = [samples[i] for i in np.flatnonzero(sources == k)]
        assert len(mine) > per_epoch
        for epoch in range(len(mine) // per_epoch):
            read = [t for s in mine[epoch * per_epoch : (epoch + 1) * per_epoch] for t in s]
            start = order.sources[k].start
            assert sorted(read) == list(range(start, start + size - 1))
    assert order.targets_between(100, 2000) == sum(map(len, samples[100:2000]))


def test_joined_streams_are_the_streams_one_after_the_other(mixed):
    store = open_corpus(mixed(a=1, b=1))
    a, b = (part.store.train for part in store.mixture)
    whole = np.concatenate([a.read(0, a.n_tokens), b.read(0, b.n_tokens)])
    assert np.array_equal(store.train.read(0, store.train.n_tokens), whole)
    border = slice(a.n_tokens - 3, a.n_tokens + 4)
    assert np.array_equal(store.train.read(border.start, border.stop), whole[border])
    eos = store.manifest.tokenizer.eos_id
    ends = store.train.document_ends(10, a.n_tokens + 500)
    assert (whole[ends - 1] == eos).all() and len(ends) > 1
    assert store.train.count_tokens(400).sum() == len(whole)
    with pytest.raises(IndexError):
        store.train.read(0, store.train.n_tokens + 1)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_the_documents_of_a_batch_are_found_in_their_own_store(mixed, packing):
    corpus = open_corpus(mixed(a=3, b=1, packing=packing))
    order = corpus.order(T, 7)
    starts = [0, corpus.mixture[0].store.train.n_tokens]
    for sample in range(40):
        wanted = []
        for start, stop in order.target_ranges([sample])[0]:
            for token in range(start + 1, stop + 1):
                number = 1 if token >= starts[1] else 0
                store = corpus.mixture[number].store
                ends = store.train.document_ends()
                document = int(np.searchsorted(ends, token - starts[number], side="right"))
                wanted.append((store.manifest.sources[0].path, document, int(ends[document])))
        found = documents_of(corpus, order, [sample])
        assert [(each.source, each.document, each.end) for each in found] == list(
            dict.fromkeys(wanted)
        )


def test_the_fingerprint_is_of_the_counts_and_the_stores(mixed, tmp_path):
    first = open_corpus(mixed(a=3, b=1))
    same = open_corpus(mixed(a=6, b=2))
    assert first.manifest.fingerprint == same.manifest.fingerprint
    assert first.manifest.fingerprint != open_corpus(mixed(a=2, b=1)).manifest.fingerprint
    (tmp_path / "b" / "plain.jsonl").write_text((tmp_path / "b" / "plain.jsonl").read_text() * 2)
    assert first.manifest.fingerprint != open_corpus(mixed(a=3, b=1)).manifest.fingerprint
    assert proportions(first.mixture) == f"a 3072/{PERIOD}, b 1024/{PERIOD}"


def test_one_tokenizer_for_all_is_trained_on_all_by_weight(mixed, tmp_path, settings):
    """A tenth of the weight reads a tenth of the text; too little text is repeated."""

    def tokenizer(**weights: float) -> Corpus:
        return open_corpus(mixed(**weights).model_copy(update={"tokenizer": "train:300"}))

    store = tokenizer(a=3, b=1)
    digests = {part.store.manifest.tokenizer.sha256 for part in store.mixture}
    assert digests == {store.manifest.tokenizer.sha256} and store.manifest.tokenizer.length == 300
    assert tokenizer(a=6, b=2).manifest.fingerprint == store.manifest.fingerprint
    assert len(list((tmp_path / "work" / "stores").glob("tokenizer-*"))) == 1
    rare = [" ".join("ẁẃẅŵŷýÿỳ"[(i * k) % 8] * 3 for k in range(1, 30)) for i in range(40)]
    (tmp_path / "b" / "plain.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in rare)
    )
    heavy, light = tokenizer(a=1, b=9), tokenizer(a=9, b=1)
    lengths = [
        sum(len(load_tokenizer(store.tokenizer_dir).encode(text)) for text in rare)
        for store in (heavy, light)
    ]
    assert lengths[0] < 0.9 * lengths[1]
    assert heavy.manifest.tokenizer.sha256 != light.manifest.tokenizer.sha256


def test_an_existing_store_decides_the_tokenizer_of_a_mixture(mixed, tmp_path, settings):
    cfg = mixed(a=3, b=1)
    ready = prepare_store(settings(cfg.mixture[1].path[0], tokenizer="train:310", val_fraction=0.4))
    second = MixtureSource(name="b", weight=1, store=str(ready.dir))
    store = open_corpus(
        cfg.model_copy(update={"mixture": (cfg.mixture[0], second), "tokenizer": "train:300"})
    )
    assert store.manifest.tokenizer.sha256 == ready.manifest.tokenizer.sha256


def test_stores_of_another_tokenizer_and_stores_that_are_not_there_are_refused(
    mixed, tmp_path, texts, settings
):
    cfg = mixed(a=3, b=1)
    other = prepare_store(
        settings(
            cfg.mixture[1].path[0],
            tokenizer="train:300",
            store=str(tmp_path / "other"),
            val_fraction=0.4,
        )
    )
    ready = MixtureSource(name="b", weight=1, store=str(other.dir))
    with pytest.raises(DataError, match="different tokenizers"):
        open_corpus(cfg.model_copy(update={"mixture": (cfg.mixture[0], ready)}))
    gone = MixtureSource(name="b", weight=1, store=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="no finished token store"):
        open_corpus(cfg.model_copy(update={"mixture": (cfg.mixture[0], gone)}))


def test_a_limit_of_evaluation_tokens_is_divided_over_the_sources_by_size(mixed):
    corpus = open_corpus(mixed(a=3, b=1))
    whole = {one.name: one.tokens for one in corpus.streams("val", None)}
    assert whole == {source.name: source.store.val for source in corpus.mixture}
    cut = {one.name: one.tokens for one in corpus.streams("val", 300)}
    sizes = {name: stream.n_tokens for name, stream in cut.items()}
    total = sum(stream.n_tokens for stream in whole.values())
    assert sizes == {name: -(-stream.n_tokens * 300 // total) for name, stream in whole.items()}
    assert np.array_equal(cut["b"].read(0, sizes["b"]), whole["b"].read(0, sizes["b"]))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_samples_and_tokens_are_counted_by_source(mixed, packing):
    """Tokens are targets: a ring's last block and packed sequences are padded."""
    corpus = open_corpus(mixed(a=3, b=1, packing=packing))
    samples = 4096
    order = corpus.order(T, 5)
    a, b = order.sources_used(samples)
    assert (a.samples, b.samples) == (3072, 1024) and a.share == 0.75
    sources, _ = order.table.locate(np.arange(samples))
    ranges = order.target_ranges(np.arange(samples))
    targets = np.array([sum(stop - start for start, stop in found) for found in ranges])
    per_epoch = corpus.mixture[1].store.train.n_tokens - 1
    if packing == "concat":
        assert (a.tokens, b.tokens) == (targets[sources == 0].sum(), targets[sources == 1].sum())
    else:
        assert b.tokens == pytest.approx(targets[sources == 1].sum(), rel=2e-2)
        blocks = order.sources[1].order.blocks_per_epoch
        epoch = next(n for n in range(samples) if order.table.samples_before(n)[1] == blocks)
        assert order.sources_used(epoch)[1].tokens == per_epoch
    assert b.tokens < 1024 * T, "nothing is padded here: the test is empty"
    assert b.epochs == pytest.approx(b.tokens / per_epoch)
    assert "a: 75.00%" in summary_of(corpus)
    assert set(summary_json(corpus)["mixture"]) == {"a", "b"}
