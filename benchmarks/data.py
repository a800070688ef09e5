"""Building a token store, by encoder, against other ways, on the same file in the same run.

The others: the tutorial's `load_dataset` + `map`, a stream of `datasets` tokenized and packed
while it is read and, with `--peers`, datatrove, litdata and MosaicML streaming (MDS).

Each contender works in its own process on one core's worth of threads, from the JSON Lines to
tokens on the disk. "MB/s" is UTF-8 text per CPU-second: on a shared machine CPU time hardly depends
on the neighbours. The tutorial keeps chunks of exactly 512 tokens of each document and throws the
rest away; WikiLLM keeps every token. The stream writes nothing: it would do the same work in every
epoch.

    # A generated corpus and a tokenizer trained on it.
    python benchmarks/data.py
    # The first 25 MB of a source of your own.
    python benchmarks/data.py --data FILE --tokenizer FOLDER --mb 25
    # The peers too; VENV is made as peers.txt says.
    python benchmarks/data.py --peers VENV/bin/python
    # WikiLLM with two worker processes.
    python benchmarks/data.py --mb 1000 --contenders fastokens --workers 2
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "FASTOKENS_BPE_THREADS"):
    os.environ[name] = "1"
# The repository instead of this folder, as in kernels.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.record import circumstances, report, run_in_fresh_process

CONTENDERS = ("tutorial", "streaming", "hf", "fastokens")
THEIRS = {
    "tutorial": "tutorial: load_dataset, map",
    "streaming": "datasets, streaming: map, pack (nothing written)",
}
PEERS = {  # what is in peers.py, and the module without which it is skipped
    "datatrove": ("datatrove", "datatrove: JsonlReader, DocumentTokenizer"),
    "litdata": ("litdata", "litdata: optimize with TokensLoader"),
    "mds": ("streaming", "MosaicML streaming: MDSWriter"),
}
LENGTH = 512  # of the tutorial's chunks


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = (
            args.work / "corpus.jsonl" if args.one else _corpus(args.data, int(args.mb * 1e6), work)
        )
        if args.one:
            print(json.dumps(_one(args.one, data, args.work / "tokenizer", work, args.workers)))
            return
        _tokenizer(args.tokenizer, data, work)
        with open(data, encoding="utf-8") as file:
            size = sum(len(json.loads(line)["text"].encode()) for line in file)
        words = ["--work", folder, "--workers", str(args.workers)]
        found = {name: run_in_fresh_process(["--one", name, *words]) for name in args.contenders}
        found |= _peers(args.peers, data, work)
    facts: dict[str, Any] = {
        "circumstances": circumstances(),
        "text_bytes": size,
        "contenders": found,
    }
    facts["circumstances"]["command"] = " ".join(
        [
            "python benchmarks/data.py",
            *(f"--{key} {Path(str(value)).name}" for key, value in _named(args).items()),
        ]
    )
    rows = []
    most = max(one["tokens"] for one in found.values())
    for name, one in found.items():
        tool = PEERS[name][1] if name in PEERS else "WikiLLM"
        seconds, label = one["cpu_s"], f"{THEIRS.get(name, tool)}, {one['encoder']}"
        rows.append(
            [label, f"{one['wall_s']:.1f}", f"{seconds:.1f}", f"{size / seconds / 1e6:.2f}"]
            + [
                f"{one['tokens'] / seconds / 1e6:.2f}",
                f"{one['peak'] / 2**20:.0f}",
                f"{one['tokens'] / most:.1%}",
            ]
        )
    one = "one process" if args.workers == 1 else f"{args.workers} workers"
    header = [
        "build",
        "wall s",
        "CPU s",
        "MB/s per core",
        "M tokens/s per core",
        "peak MiB",
        "tokens kept",
    ]
    report(
        f"Text to tokens on the disk, {size / 1e6:.1f} MB of text, {one}",
        facts,
        header,
        rows,
        args.out,
    )


def _peers(python: Path | None, data: Path, work: Path) -> dict[str, Any]:
    """The peers that `python` can run; a line for each that it cannot."""
    found: dict[str, Any] = {}
    for name, (module, label) in PEERS.items() if python is not None else ():
        known = subprocess.run(
            [
                str(python),
                "-c",
                f"import importlib.util as u; raise SystemExit(u.find_spec('{module}') is None)",
            ],
            capture_output=True,
        )
        if known.returncode != 0:
            print(f"skipped {label}: {python} has no module {module}; see benchmarks/peers.txt")
            continue
        own = work / f"peer-{name}"
        own.mkdir()
        script = Path(__file__).resolve().parent / "peers.py"
        words = [str(python), str(script), name, str(data), str(work / "tokenizer"), str(own)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=own)
        if done.returncode != 0:
            print(f"skipped {label}: it ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            continue
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _named(args: argparse.Namespace) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(args).items()
        if key in ("data", "tokenizer", "mb", "peers") and value or key == "workers" and value > 1
    }


def _one(name: str, data: Path, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    """Run one contender, without its imports. `peak`: of the largest process."""
    import resource

    def usage() -> tuple[float, int]:
        found = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(one.ru_utime + one.ru_stime for one in found), max(
            one.ru_maxrss for one in found
        )

    build = {"tutorial": _tutorial, "streaming": _streaming}.get(name, _wikillm)
    begin = build(name, data, tokenizer, work, workers)
    start, (used, _) = time.perf_counter(), usage()
    with contextlib.redirect_stdout(sys.stderr):
        found = begin()
    cpu, peak = usage()
    return found | {"wall_s": time.perf_counter() - start, "cpu_s": cpu - used, "peak": peak * 1024}


def _tutorial(_: str, data: Path, folder: Path, work: Path, workers: int) -> Any:
    """What the tutorial does: read, tokenize in chunks of 512, keep the full chunks."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def chunks(batch: dict[str, list[str]]) -> dict[str, Any]:
        out = tokenizer(
            batch["text"],
            truncation=True,
            max_length=LENGTH,
            return_overflowing_tokens=True,
            return_length=True,
        )
        return {
            "input_ids": [
                ids for n, ids in zip(out["length"], out["input_ids"], strict=True) if n == LENGTH
            ]
        }

    def run() -> dict[str, Any]:
        raw = datasets.load_dataset(
            "json", data_files=str(data), split="train", cache_dir=str(work / "cache")
        )
        cut = raw.map(chunks, batched=True, remove_columns=raw.column_names)
        return {"tokens": len(cut) * LENGTH, "encoder": "transformers"}

    return run


def _streaming(_: str, data: Path, folder: Path, work: Path, workers: int) -> Any:
    """A stream of `datasets` as run_clm packs it: documents with EOS, cut into blocks by batch."""
    from itertools import chain

    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": [[*ids, eos] for ids in tokenizer(batch["text"])["input_ids"]]}

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = list(chain.from_iterable(batch["input_ids"]))
        whole = len(joined) // LENGTH * LENGTH
        return {"input_ids": [joined[start : start + LENGTH] for start in range(0, whole, LENGTH)]}

    def run() -> dict[str, Any]:
        raw = datasets.load_dataset("json", data_files=str(data), split="train", streaming=True)
        packed = (
            raw.select_columns(["text"])
            .map(encode, batched=True, remove_columns=["text"])
            .map(pack, batched=True)
        )
        return {"tokens": sum(len(row["input_ids"]) for row in packed), "encoder": "transformers"}

    return run


def _wikillm(name: str, data: Path, folder: Path, work: Path, workers: int) -> Any:
    from wikillm.config.schema_data import DataSection
    from wikillm.data.prepare.prepare import prepare_store

    backend: Any = name
    cfg = DataSection(
        path=(str(data),),
        tokenizer=str(folder),
        store=str(work / "store"),
        workers=workers,
        backend=backend,
        min_val_tokens=1,
    )

    def run() -> dict[str, Any]:
        store = prepare_store(cfg)
        return {
            "tokens": store.train.n_tokens + store.val.n_tokens,
            "encoder": " ".join(store.manifest.backend.values()),
        }

    return run


def _corpus(path: Path | None, size: int, work: Path) -> Path:
    """The first `size` bytes of text as JSON Lines; made up when no file is given."""
    from wikillm.data.sources.read import items_of
    from wikillm.data.sources.sniff import sniff
    from wikillm.data.text.clean import cleaner

    target = work / "corpus.jsonl"
    if path is None:
        sys.path.insert(0, str(Path(sys.path[0]) / "tests"))
        from harness.corpus import write_corpus

        return Path(write_corpus(target, size=size))
    source, written = sniff(path), 0
    clean = cleaner(source.format, "text", source.site)
    with open(target, "w", encoding="utf-8") as file:
        for offset, payload, _ in items_of(source, 0, 1 << 24):
            found = clean(payload, offset) if payload is not None else None
            if isinstance(found, str):
                file.write(json.dumps({"text": found}, ensure_ascii=False) + "\n")
                written += len(found.encode())
            if written >= size:
                break
    return target


def _tokenizer(folder: Path | None, data: Path, work: Path) -> None:
    from wikillm.data.tokenizer.tokenizer import copy_tokenizer
    from wikillm.data.tokenizer.train import train_bpe, write_tokenizer

    if folder is not None:
        copy_tokenizer(folder, work / "tokenizer")
        return
    with open(data, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(1000), strict=False)]
    write_tokenizer(train_bpe(texts, 8000), work / "tokenizer")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="any source that WikiLLM reads, with its text under `text`"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer folder; default: trained on the text"
    )
    parser.add_argument("--mb", type=float, default=25, help="MB of text (default 25)")
    parser.add_argument(
        "--peers", type=Path, metavar="PYTHON", help="interpreter of an environment with the peers"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that build WikiLLM's store (default 1)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
