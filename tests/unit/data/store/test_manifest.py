"""Damaged manifests and shards: refused when a store is opened, verified, or read by training."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wikillm.cli.main import main
from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError, MachineError
from wikillm.data.inspect.verify import verify
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.read.loader import BatchShape, train_loader
from wikillm.data.store.manifest import Manifest, fingerprint_of
from wikillm.data.store.store import INDEX, TOKEN, Store


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A folder with x.jsonl and a store of it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"text": f"text {i}: " + "字 word " * i}) + "\n" for i in range(80))
    )
    prepare_store(section(folder, tokenizer_dir))
    return folder


def section(folder: Path, tokenizer: Path) -> DataSection:
    names = {"path": (str(folder / "x.jsonl"),), "store": str(folder / "store")}
    sizes = {"val_fraction": 0.3, "shard_bytes": 8000, "min_val_tokens": 1}
    return DataSection(**names, **sizes, tokenizer=str(tokenizer), workers=1)


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy of the store, with its source beside it."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy" / "store"


def change(store: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = store / "manifest.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value of a manifest but those of the facts, which are anything."""
    found = [path] if path else []
    inner = enumerate(value[:1]) if isinstance(value, list) else ()
    for name, item in value.items() if isinstance(value, dict) else inner:
        if path != ("facts",):
            found += places(item, (*path, name))
    return found


WRONG = [None, [], {}, "x", -1, 1.5, True, 2**70, "9" * 5, [[]], {"a": None}]


def test_every_value_of_another_type_is_refused(store):
    """All places times all wrong values, and each value left out, unless the field allows it."""
    value = json.loads((store / "manifest.json").read_text())
    refused = 0
    for path in places(value):
        node = value
        for name in path[:-1]:
            node = node[name]
        last = path[-1]
        right = node[last]
        for wrong in WRONG:
            if type(wrong) is type(right):
                continue
            node[last] = wrong
            assert is_refused(value) or (wrong is None and last == "duplicates"), (
                f"{path} may be {wrong!r}"
            )
            refused += 1
        if isinstance(node, dict):
            del node[last]
            has_default = last in (
                "url",
                "version",
                "backend",
                "source",
                "offset",
                "base",
                "dropped",
            )
            may_be_missing = has_default and path != ("backend",) and path != ("backend", "version")
            assert is_refused(value) or may_be_missing, f"without {path}"
        node[last] = right
    assert refused > 500 and not is_refused(value)


def is_refused(value: dict[str, Any]) -> bool:
    try:
        Manifest.parse(json.dumps(value).encode())
    except (ValueError, DataError):
        return True
    return False


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no shards": (lambda m: m.update(shards=[]), "manifest lists none"),
    "an EOS far away": (
        lambda m: m["tokenizer"].update(eos_id=10**9),
        "eos_id: 1000000000 is outside",
    ),
    "a negative EOS": (
        lambda m: m["tokenizer"].update(eos_id=-1),
        "eos_id: -1 is not",
    ),
    "a negative size": (lambda m: m.update(shard_bytes=-1), "shard_bytes: -1 is not"),
    "a position beyond 63 bits": (
        lambda m: m["shards"][0]["end"].update(offset=2**63),
        r"shards.0.end.offset: 9\d+ is not",
    ),
    "a vocabulary beyond 32 bits": (
        lambda m: m["tokenizer"].update(length=2**40, eos_id=0),
        "not a number of token ids",
    ),
    "missing tokens": (
        lambda m: m["splits"]["train"].update(tokens=10**15),
        "but the shards sum to",
    ),
    "another split": (
        lambda m: m["splits"].update(test=m["splits"]["val"]),
        "splits are test, train, val",
    ),
    "shards in disorder": (lambda m: m["shards"].reverse(), r"shards\[0\].number"),
    "a key too many": (lambda m: m["tokenizer"].update(x=1), "tokenizer.x: Unexpected"),
    "a share of none": (
        lambda m: m["facts"].update({"data.val_fraction": "all"}),
        "is not a share",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_manifest_is_an_error_of_data_wherever_it_is_read(store, settings, capsys, name):
    edit, message = DAMAGE[name]
    change(store, edit)
    with pytest.raises(DataError, match=message):
        Store.open(store)
    with pytest.raises(DataError, match=message):
        prepare_store(settings(store=str(store)))
    assert main(["data", "verify", "--store", str(store)]) == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", "[" * 10_000, '{"format_version": true}', "9" * 10_000, "\ufeff{}"],
)
def test_a_file_that_is_no_manifest_is_a_data_error(store, content):
    (store / "manifest.json").write_text(content)
    with pytest.raises(DataError):
        Store.open(store)


def rewrite(
    store: Path, edit: Callable[[np.ndarray], None], kind: str = "tok", split: str = "train"
) -> None:
    """Change a shard and its sha256: files and manifest agree, and what they say is wrong."""
    path = store / split / f"00000.{kind}"
    content = np.fromfile(path, dtype=TOKEN if kind == "tok" else INDEX)
    edit(content)
    content.tofile(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change(store, lambda m: m["shards"][0]["splits"][split].update({f"{kind}_sha256": digest}))


def test_ids_outside_the_vocabulary_are_found_by_verify_and_by_training(store, capsys):
    rewrite(store, lambda ids: ids.__setitem__(7, 4_000_000_000))
    assert main(["data", "verify", "--store", str(store)]) == 4
    assert "4000000000 in" in capsys.readouterr().err
    opened = Store.open(store, sizes=True)
    order = StoredCorpus(opened, 8).order(16, 1)
    loader = train_loader(opened.train, order, BatchShape(4, 1, 1, 0), total_steps=200)
    with pytest.raises(DataError, match="outside the vocabulary"):
        list(loader)


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (lambda ids: ids.__setitem__(-1, 5), "tok", "does not end with EOS"),
        (lambda index: index["end"].put(0, index["end"][1]), "idx", "do not follow each other"),
        (lambda index: index["end"].put(-1, 3), "idx", "do not follow each other"),
        (lambda index: index["source"].__setitem__(0, 9), "idx", "names a source"),
    ],
)
def test_an_index_that_does_not_fit_its_tokens_is_found_by_verify(store, edit, kind, message):
    rewrite(store, edit, kind)
    with pytest.raises(DataError, match=message):
        verify(Store.open(store))


def test_an_index_of_other_tokens_ends_reading(store):
    rewrite(store, lambda index: index["end"].__setitem__(-1, 10**12), "idx")
    with pytest.raises(DataError, match="indexes 1000000000000 tokens"):
        Store.open(store).train.document_ends()


def test_verify_finds_a_tokenizer_other_than_the_manifests(store):
    change(store, lambda m: m["tokenizer"].update(eos_id=3))
    with pytest.raises(DataError, match="EOS"):
        verify(Store.open(store))
    change(store, lambda m: m.update(fingerprint=fingerprint_of({})))
    with pytest.raises(DataError, match="fingerprint does not match the facts"):
        verify(Store.open(store))


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(store, monkeypatch):
    """Root may read everything, so the refusal is made here."""

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MachineError, match="cannot be read") as caught:
        Store.open(store)
    assert "rm " not in caught.value.fix and "Permission denied" in caught.value.got


@pytest.mark.parametrize("content", ["", "[]", '{"facts": []}', '{"facts": 3}', "[" * 10_000])
def test_a_damaged_build_json_is_refused(store, tokenizer_dir, content):
    (store / "manifest.json").unlink()
    (store / "build.json").write_text(content)
    with pytest.raises(DataError, match="identifies this unfinished store, is damaged") as caught:
        prepare_store(section(store.parent, tokenizer_dir))
    assert caught.value.fix == f"move it away and build it again: mv {store} {store}.old"


@pytest.mark.parametrize(
    "content", ["[]", '{"digests": 5}', '{"digests": ["a", "b"]}', '{"digests": [1]}', "[" * 10_000]
)
def test_a_damaged_record_of_the_sources_is_ignored(store, tokenizer_dir, content):
    cfg = section(store.parent, tokenizer_dir)
    before = prepare_store(cfg).manifest
    remembered = max(store.parent.glob(".*.found.json"), key=lambda path: path.stat().st_mtime_ns)
    good = remembered.read_text()
    remembered.write_text(content)
    assert prepare_store(cfg).manifest == before
    assert remembered.read_text() == good


@pytest.mark.parametrize("eos", [5, [], {"content": 3}, {"content": ["x"]}])
def test_an_eos_token_of_another_type_is_an_error_of_data(store, eos):
    path = store / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": eos}))
    with pytest.raises(DataError, match="tokenizer_config.json is damaged|no end-of-text"):
        verify(Store.open(store))
