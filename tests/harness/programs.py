"""What ranks run in tests: functions that can be imported by name in a forked process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def init_gloo() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")


def agree(stop_rank: int) -> dict[str, Any]:
    """Control group: votes, sums, gather, barrier, leaving together."""
    import torch.distributed as dist

    from wikillm.train.collectives import ControlGroup

    init_gloo()
    rank, group = dist.get_rank(), ControlGroup()
    votes = group.any(rank == stop_rank, False)
    total = group.sum(float(rank), 1.0)
    everyone = group.gather({"rank": rank})
    group.barrier()
    group.leave_together(10.0)
    return {"votes": votes, "sum": total, "everyone": everyone}


def leave_without(missing_rank: int, timeout: float) -> float:
    """One rank never comes to the last barrier: how long do the others wait?"""
    import torch.distributed as dist

    from wikillm.train.collectives import ControlGroup

    init_gloo()
    group = ControlGroup()
    start = time.monotonic()
    if dist.get_rank() == missing_rank:
        time.sleep(timeout + 2.0)
    else:
        group.leave_together(timeout)
    return time.monotonic() - start


def start_and_sum() -> float:
    """Start DeepSpeed's engine on CPU as a run does, then add the ranks (from 1) up."""
    import deepspeed
    import torch

    from wikillm.core.world import World
    from wikillm.train.engine import Engine, start_engine

    world = World.from_env()
    start_engine(world, Engine("fp32", {"zero_optimization": {"stage": 2}}, ()))
    value = torch.tensor([float(world.rank + 1)] * 64)
    deepspeed.comm.all_reduce(value)
    return float(value[0])


def train(words: list[str], **options: Any) -> dict[str, Any]:
    """`wikillm train` on this rank: the loss series, and what is needed to compare runs.

    Options: resume, allow_change, kill_at (SIGKILL to itself before that step's end), signal_at (step), signal_rank, poison_at.
    """
    from wikillm.config.load import load
    from wikillm.core.errors import WikiLLMError

    deepspeed = options.pop("deepspeed", None)
    _inject(options)
    resolved = load(options.pop("config", None), words, deepspeed)
    out = io.StringIO()
    from wikillm.train.preview import say_result
    from wikillm.train.run import pretrain

    code, message = 0, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            allow_change = options.pop("allow_change", False)
            done = pretrain(
                resolved, resume=options.pop("resume", "never"), allow_change=allow_change
            )
            say_result(done)
        except WikiLLMError as error:
            code, message = int(error.exit_code), str(error)
    run_dir = Path(resolved.config.run.dir or "")
    return {"code": code, "message": message, "output": out.getvalue(), **read_run(run_dir)}


def train_with_options(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` with its options as one argument."""
    return train(words, **options)


def train_without_launcher(words: list[str]) -> dict[str, Any]:
    """`train` as `python train.py` starts it: none of a launcher's variables is set."""
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        os.environ.pop(name, None)
    return train(words)


def read_run(run_dir: Path) -> dict[str, Any]:
    """Losses by step, evaluations, the exit record: from the run directory's files alone."""
    from wikillm.observe.sinks import read_metrics, read_records

    exit_file = run_dir / "exit.json"
    events = read_records(run_dir / "events.jsonl")
    return {
        "losses": {r["step"]: r["loss"] for r in read_metrics(run_dir / "metrics.jsonl")},
        "grad_norms": {
            r["step"]: r.get("grad_norm") for r in read_metrics(run_dir / "metrics.jsonl")
        },
        "eval": [e["eval_loss"] for e in events if e["kind"] == "eval"],
        "exit": json.loads(exit_file.read_text()) if exit_file.exists() else None,
    }


def _inject(options: dict[str, Any]) -> None:
    """Put a fault into this rank, from outside the code under test: after so many optimizer steps."""
    signal_at, signal_rank = options.pop("signal_at", None), options.pop("signal_rank", 0)
    kill_at, poison_at = options.pop("kill_at", None), options.pop("poison_at", None)
    if signal_at is None and kill_at is None and poison_at is None:
        return
    import torch

    from wikillm.train.trainer import WikiTrainer

    rank = int(os.environ.get("RANK", "0"))
    original = WikiTrainer.training_step

    def training_step(self: WikiTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        step = self.state.global_step
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == signal_at and rank == signal_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == poison_at and rank == 0:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(float("nan"))
        return original(self, *args, **kwargs)

    WikiTrainer.training_step = training_step  # type: ignore[method-assign]


def tensor_digest(checkpoint: Path) -> str:
    """sha256 over the weights of a checkpoint, by name."""
    import hashlib

    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(checkpoint / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def train_with_small_tiles(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` whose tiled MLP takes 24 tokens at a time, so that a tiny micro-step has several chunks."""
    from wikillm.kernels import chunks

    chunks.TILES["cpu"] = (1, 24, 24)
    return train(words, **options)


def train_noting_reductions(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` without DeepSpeed that notes, for each micro-step, whether the ranks exchange gradients in its backward."""
    from wikillm.train.trainer import WikiTrainer

    noted: list[bool] = []
    micro_step = WikiTrainer._micro_step

    def noting(self: Any, model: Any, batch: Any, targets: Any) -> Any:
        noted.append(model.require_backward_grad_sync)
        return micro_step(self, model, batch, targets)

    WikiTrainer._micro_step = noting  # type: ignore[method-assign]
    return train(words, **options) | {"reductions": noted}


def train_counting_gathers(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` under ZeRO-3 that counts how often weights are gathered, by their shape."""
    from collections import Counter

    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    gathers: Counter[str] = Counter()
    name = "_PartitionedParameterCoordinator__all_gather_params"
    gather = getattr(Coordinator, name)

    def counting(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        gathers.update(str(tuple(param.ds_shape)) for param in params)
        return gather(self, params, *args, **kwargs)

    setattr(Coordinator, name, counting)
    return train(words, **options) | {"gathers": dict(gathers)}


def attend_over_ranks(
    query_heads: int, key_heads: int, dtype: str, documents: bool
) -> dict[str, float]:
    """Attention of this rank's stretch, forward and backward, beside HF's on whole sequences, and DeepSpeed's Ulysses.

    Returns the largest differences, relative to the largest element: `out`, `query`, `key`, `value`, and `deepspeed`.
    """
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM, Qwen2Config

    from wikillm.models.attention_mask import same_document
    from wikillm.models.sequence_parallel import split_sequences, whole_sequences

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    rank, size, batch, length, width = dist.get_rank(), dist.get_world_size(), 2, 16, 8
    config = Qwen2Config(
        hidden_size=query_heads * width, num_hidden_layers=1, num_attention_heads=query_heads,
        num_key_value_heads=key_heads, intermediate_size=8, vocab_size=16, attn_implementation="sdpa",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    shapes = {"query": query_heads, "key": key_heads, "value": key_heads}
    whole = {
        k: torch.randn(batch, n, length, width, dtype=getattr(torch, dtype))
        for k, n in shapes.items()
    }
    grad = torch.randn(batch, length, query_heads, width, dtype=getattr(torch, dtype))
    positions = torch.arange(length).expand(batch, -1)
    mask = (
        same_document(torch.cat([positions[:, :5], positions[:, :11]], dim=1))
        if documents
        else None
    )
    columns = slice(rank * length // size, (rank + 1) * length // size)

    def run(
        parts: dict[str, torch.Tensor], grad: torch.Tensor, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attention = model.model.layers[0].self_attn
        leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
        options = {"scaling": attention.scaling, "dropout": 0.0, **kwargs}
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](attention, *leaves.values(), mask, **options)
        out.reshape(grad.shape).backward(grad)
        return {"out": out.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}  # type: ignore[dict-item]

    wanted = run(whole, grad)
    parts, part_grad = {name: x[:, :, columns] for name, x in whole.items()}, grad[:, columns]
    split_sequences(model, size)
    stretch = {"position_ids": positions[:, columns], "sequence_parallel": True}
    found = run(parts, part_grad, **stretch)
    again = run(whole, grad)  # a call that is no stretch
    assert all(torch.equal(again[name], wanted[name]) for name in wanted), (
        "patched, whole sequences differ"
    )
    whole_sequences(model)
    assert not any("wikillm" in name for name in model.model.layers[0].self_attn.__dict__)

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).abs().max() / b.double().abs().max())

    differences = {
        name: off(part, wanted[name][:, columns] if name == "out" else wanted[name][:, :, columns])
        for name, part in found.items()
    }
    if not documents:  # DeepSpeed's knows documents by flash attention's lengths only
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        UlyssesSPAttentionHF.register_with_transformers(
            model,
            core_attn_implementation="sdpa",
            sequence_parallel_size=size,
            micro_batch_size=batch,
        )
        theirs = run(parts, part_grad, position_ids=positions[:, columns])
        differences["deepspeed"] = max(
            off(theirs[name].reshape(found[name].shape), found[name]) for name in found
        )
    return differences


def mount(*commands: list[str]) -> None:
    """Run `mount` with each list of words, in a mount namespace of this process's own. Needs root."""
    import ctypes
    import subprocess

    libc, new_mounts = ctypes.CDLL(None, use_errno=True), 0x00020000
    assert libc.unshare(new_mounts) == 0, os.strerror(ctypes.get_errno())
    for words in (["--make-rprivate", "/"], *commands):
        subprocess.run(["mount", *words], check=True)


def train_on_read_only_store(
    words: list[str], options: dict[str, Any], store: str
) -> dict[str, Any]:
    """`train` where `store` is read-only, for root too."""
    mount(["--bind", store, store], ["-o", "remount,bind,ro", store])
    try:
        Path(store, "probe").touch()
    except OSError:
        return train(words, **options)
    raise AssertionError(f"{store} can be written")


def train_on_small_disk(folder: str, size: str, *starts: list[str]) -> list[dict[str, Any]]:
    """`train` several times on a disk of `size` at `folder`, the first time anew; and what lies there after each."""
    from wikillm.checkpoints.layout import STAGING, list_checkpoints

    mount(["-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder])
    found = []
    for number, words in enumerate(starts):
        result = train(words, resume="auto" if number else "never")
        checkpoints = Path(folder, "run", "checkpoints")
        result["checkpoints"] = [path.name for path in list_checkpoints(checkpoints)]
        found.append(result | {"staging": (checkpoints / STAGING).exists()})
    return found


def train_with_read_only_home(
    words: list[str], options: dict[str, Any], home: str
) -> dict[str, Any]:
    """`train` where HOME cannot be written and no other folder is named for compiled code."""
    mount(["-t", "tmpfs", "-o", "ro", "tmpfs", home])
    os.environ["HOME"] = home
    os.environ.pop("TORCH_EXTENSIONS_DIR", None)
    return train(words, **options)


def train_counting_reads(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` that counts, by optimizer step, how often Python reads a value out of a tensor: on a GPU it would wait.

    Not counted: AdamW's step numbers, which are on the host in any case, and the flag that is deferred on a GPU. `unmoved` are
    tensors that the Trainer moves to the device itself, waiting.
    """
    import sys
    from collections import Counter

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from wikillm.train import trainer as module
    from wikillm.train.trainer import WikiTrainer

    reads: Counter[int] = Counter()
    moved: set[int] = set()
    found = {"unmoved": 0}

    class Counting(TorchDispatchMode):
        def __init__(self, trainer: WikiTrainer) -> None:
            super().__init__()
            self.trainer = trainer

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and not self._is_on_the_host():
                reads[self.trainer.state.global_step] += 1
            return func(*args, **kwargs or {})

        def _is_on_the_host(self) -> bool:
            frame = sys._getframe(2)
            while frame is not None:
                if frame.f_code.co_filename.endswith(
                    ("torch/optim/adamw.py", "torch/optim/adam.py")
                ):
                    return True
                if frame.f_code.co_qualname.startswith("DeferredFlag."):
                    return True
                frame = frame.f_back  # type: ignore[assignment]
            return False

    train_loop, prepare, to_device = WikiTrainer.train, WikiTrainer._prepare_input, module.to_device

    def counted_loop(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        with Counting(self):
            return train_loop(self, *args, **kwargs)

    def noting_moves(batch: Any, device: Any) -> Any:
        out = to_device(batch, device)
        moved.update(id(value) for value in out.values())
        return out

    def noting_others(self: WikiTrainer, data: Any) -> Any:
        found["unmoved"] += isinstance(data, torch.Tensor) and id(data) not in moved
        return prepare(self, data)

    WikiTrainer.train, WikiTrainer._prepare_input = counted_loop, noting_others  # type: ignore[method-assign]
    module.to_device = noting_moves
    return train(words, **options) | {"reads": dict(reads)} | found


def train_noting_waits(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` on a GPU in torch's sync debug mode from the second step on: by step, where the host waited."""
    import traceback
    import warnings
    from collections import defaultdict

    import torch

    from wikillm.train.trainer import WikiTrainer

    waits: dict[int, list[str]] = defaultdict(list)
    begun: list[WikiTrainer] = []
    training_step = WikiTrainer.training_step

    def noting(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        if not begun and self.state.global_step == 1:
            begun.append(self)
            torch.cuda.set_sync_debug_mode("warn")
        return training_step(self, *args, **kwargs)

    def show(message: Any, *_: Any, **__: Any) -> None:
        if begun and "synchronizing" in str(message):
            waits[begun[0].state.global_step].append("".join(traceback.format_stack(limit=6)))

    WikiTrainer.training_step = noting  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        found = train(words, **options)
    return found | {"waits": dict(waits)}
