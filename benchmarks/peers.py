"""One peer's way from JSON Lines to tokens on the disk, for `benchmarks/data.py --peers PYTHON`.

Runs in its own environment (`peers.txt`), so it imports nothing of WikiLLM. Each peer writes
the ids of every document with its EOS, as its documentation does it. litdata and MDS bring no
encoder: they are fed by fastokens, in batches of 1 MiB of text. The last line printed is JSON: wall
and CPU seconds (children included), peak bytes (the largest process), tokens, encoder.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

Build = Callable[[], dict[str, Any]]
BATCH_BYTES = 1 << 20


def datatrove(data: Path, tokenizer: Path, work: Path) -> Build:
    """Its reader and its tokenizer step, one task; documents stay in order."""
    from importlib.metadata import version

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def run() -> dict[str, Any]:
        out = work / "datatrove"
        steps = [
            JsonlReader(str(data.parent), glob_pattern=data.name),
            DocumentTokenizer(
                str(out),
                str(tokenizer / "tokenizer.json"),
                eos_token=_eos(),
                shuffle_documents=False,
            ),
        ]
        LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(work / "logs")).run()
        metadata = next(out.glob("*.metadata")).read_text().splitlines()
        size = sum(path.stat().st_size for path in out.glob("*.ds"))
        width = int(metadata[0].rpartition("|")[2])
        return {"tokens": size // width, "encoder": f"tokenizers {version('tokenizers')}"}

    return run


def litdata(data: Path, tokenizer: Path, work: Path) -> Build:
    """`optimize` with a TokensLoader, one worker."""
    import torch
    from litdata import TokensLoader, optimize

    def documents(path: str) -> Iterator[torch.Tensor]:
        for ids in _documents(Path(path), tokenizer):
            yield torch.from_numpy(ids.astype(np.int32))

    def run() -> dict[str, Any]:
        out = work / "litdata"
        optimize(
            documents,
            [str(data)],
            output_dir=str(out),
            chunk_bytes="64MB",
            item_loader=TokensLoader(),
            num_workers=1,
            start_method="fork",
            verbose=False,
        )
        chunks = json.loads((out / "index.json").read_text())["chunks"]
        return {"tokens": sum(chunk["dim"] for chunk in chunks), "encoder": _fastokens()}

    return run


def mds(data: Path, tokenizer: Path, work: Path) -> Build:
    """A sample per document, its ids as an array of uint32."""
    _without_torchvision()
    from streaming import MDSWriter

    def run() -> dict[str, Any]:
        tokens = 0
        with MDSWriter(out=str(work / "mds"), columns={"tokens": "ndarray:uint32"}) as writer:
            for ids in _documents(data, tokenizer):
                writer.write({"tokens": ids})
                tokens += len(ids)
        return {"tokens": tokens, "encoder": _fastokens()}

    return run


PEERS = {"datatrove": datatrove, "litdata": litdata, "mds": mds}


def _documents(data: Path, tokenizer: Path) -> Iterator[np.ndarray]:
    import fastokens
    import orjson

    encoder = fastokens.Tokenizer.from_json_str(
        (tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    )
    encoder.no_truncation()
    encoder.no_padding()
    eos = encoder.token_to_id(_eos())
    texts: list[str] = []
    size = 0

    def encoded() -> Iterator[np.ndarray]:
        ids, ends = encoder.encode_batch_flat(texts, False, True)
        every = np.frombuffer(ids, "<u4")
        bounds = np.frombuffer(ends, "<u8").tolist()
        bounds = bounds if len(bounds) == len(texts) + 1 else [0, *bounds]
        for start, end in zip(bounds, bounds[1:], strict=False):
            yield np.append(every[start:end], np.uint32(eos))

    with open(data, "rb") as file:
        for line in file:
            texts.append(orjson.loads(line)["text"])
            size += len(line)
            if size >= BATCH_BYTES:
                yield from encoded()
                texts, size = [], 0
    if texts:
        yield from encoded()


def _without_torchvision() -> None:
    """`streaming` imports it for images, and its published wheel wants torch for CUDA."""
    from transformers.feature_extraction_utils import BatchFeature  # noqa: F401  asks whether torchvision is there

    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__["__getattr__"] = _nothing
        sys.modules.setdefault(name, module)


def _nothing(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def _eos() -> str:
    return "<|endoftext|>"


def _fastokens() -> str:
    from importlib.metadata import version

    return f"fastokens {version('fastokens')}"


def main() -> None:
    """`peers.py NAME DATA TOKENIZER WORK`; imports are not counted."""
    name, data, tokenizer, work = sys.argv[1], *map(Path, sys.argv[2:5])
    begin = PEERS[name](data, tokenizer, work)
    wall, cpu = time.perf_counter(), _cpu()
    found = begin()
    found |= {"wall_s": time.perf_counter() - wall, "cpu_s": _cpu() - cpu}
    found["peak"] = 1024 * max(resource.getrusage(who).ru_maxrss for who in _WHO)
    print("\n" + json.dumps(found))


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in _WHO]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
