"""Programs for ranks in tests: functions that a forked process imports by name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


def init_gloo() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")


def agree(stop_rank: int) -> dict[str, Any]:
    """Use the control group: votes, sum, gather, barrier, and leaving together."""
    import torch.distributed as dist

    from wikillm.train.collectives import ControlGroup

    init_gloo()
    rank = dist.get_rank()
    group = ControlGroup()
    votes = group.any(rank == stop_rank, False)
    total = group.sum(float(rank), 1.0)
    everyone = group.gather({"rank": rank})
    group.barrier()
    group.leave_together(10.0)
    return {"votes": votes, "sum": total, "everyone": everyone}


def share_folder(runs: list[str]) -> str:
    """Check the run directory, whose path differs between the ranks; returns the error."""
    import torch.distributed as dist

    from wikillm.core.errors import MachineError
    from wikillm.core.world import World
    from wikillm.train import start_checks
    from wikillm.train.collectives import ControlGroup
    from wikillm.train.run_dir import RunDir

    start_checks._VISIBLE_SECONDS = 1.0
    init_gloo()
    run = RunDir(Path(runs[dist.get_rank()]))
    try:
        start_checks.check_shared_folder(run, World.from_env(), ControlGroup())
    except MachineError as error:
        return str(error)
    return ""


def leave_without(missing_rank: int, timeout: float) -> float:
    """One rank does not reach the last barrier. Return how long this rank waited."""
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


def start_and_sum(ops: str) -> tuple[float, list[str]]:
    """Start DeepSpeed's engine on CPU as a run does, then sum the ranks (from 1).

    Returns the sum, and the buffers of DeepSpeed's shared-memory op that this process has mapped.
    `ops` is the folder of compiled ops.
    """
    os.environ["TORCH_EXTENSIONS_DIR"] = ops
    import deepspeed
    import torch

    from wikillm.core.world import World
    from wikillm.train.engine import Engine, start_engine

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = True  # as in a fresh process
    world = World.from_env()
    start_engine(world, Engine("fp32", {"zero_optimization": {"stage": 2}}, ()))
    value = torch.tensor([float(world.rank + 1)] * 64)
    deepspeed.comm.all_reduce(value)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return float(value[0]), [line for line in maps if "deepspeed_allreduce_buffer" in line]


def train(words: list[str], **options: Any) -> dict[str, Any]:
    """Run `wikillm train` on this rank. Return the losses and what is needed to compare runs.

    Options: resume, allow_change, kill_at (SIGKILL to itself before the end of that step),
    signal_at (step), signal_rank, poison_at.
    """
    from wikillm.config.load import load
    from wikillm.core.errors import WikiLLMError

    deepspeed = options.pop("deepspeed", None)
    inject(options)
    resolved = load(options.pop("config", None), words, deepspeed)
    out = io.StringIO()
    from wikillm.train.run import pretrain

    code = 0
    message = ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            allow_change = options.pop("allow_change", False)
            pretrain(resolved, resume=options.pop("resume", "never"), allow_change=allow_change)
        except WikiLLMError as error:
            code = int(error.exit_code)
            message = str(error)
    run_dir = Path(resolved.config.run.dir or "")
    return {"code": code, "message": message, "output": out.getvalue(), **read_run(run_dir)}


def train_with_options(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """`train` with its options as one argument."""
    return train(words, **options)


def leave_launcher() -> None:
    """Remove the launcher's variables, as if this process had been started by hand."""
    for name in (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def train_without_launcher(words: list[str]) -> dict[str, Any]:
    """Run `train` as `python train.py` does."""
    leave_launcher()
    return train(words)


def read_run(run_dir: Path) -> dict[str, Any]:
    """Losses by step, evaluations and the exit record, read from the files of the run directory."""
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


def inject(options: dict[str, Any]) -> None:
    """Add a fault to this rank at an optimizer step, from outside the code under test."""
    signal_at = options.pop("signal_at", None)
    signal_rank = options.pop("signal_rank", 0)
    kill_at = options.pop("kill_at", None)
    poison_at = options.pop("poison_at", None)
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
    """Run `train` with tiles of 24 tokens in the MLP, so a tiny micro-step has several chunks."""
    from wikillm.kernels import chunks

    chunks.MLP_CHUNKS["cpu"] = (1, 24, 24)
    return train(words, **options)


def mount(*commands: list[str]) -> None:
    """Run `mount` with each argument list in a new mount namespace of this process. Needs root."""
    import ctypes
    import subprocess

    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts = 0x00020000
    assert libc.unshare(new_mounts) == 0, os.strerror(ctypes.get_errno())
    for words in (["--make-rprivate", "/"], *commands):
        subprocess.run(["mount", *words], check=True)


def train_on_read_only_store(
    words: list[str], options: dict[str, Any], store: str
) -> dict[str, Any]:
    """Run `train` with a `store` that is read-only, for root too."""
    mount(["--bind", store, store], ["-o", "remount,bind,ro", store])
    try:
        Path(store, "probe").touch()
    except OSError:
        return train(words, **options)
    raise AssertionError(f"{store} can be written")


def train_on_small_disk(folder: str, size: str, *starts: list[str]) -> list[dict[str, Any]]:
    """Train repeatedly on a disk of `size` at `folder`, then resume. Return each result.

    In the first start something else fills the disk once the save of step 3 has begun.
    """
    from wikillm.checkpoints.layout import STAGING, list_checkpoints

    mount(["-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder])
    found = []
    filler = Path(folder, "filler")
    for number, words in enumerate(starts):
        _fill_in_a_save(filler if number == 0 else None)
        result = train(words, resume="auto" if number else "never")
        filler.unlink(missing_ok=True)
        checkpoints = Path(folder, "run", "checkpoints")
        result["checkpoints"] = [path.name for path in list_checkpoints(checkpoints)]
        staged = checkpoints / STAGING
        found.append(result | {"staging": staged.is_dir() and any(staged.iterdir())})
    return found


def _fill_in_a_save(filler: Path | None) -> None:
    """Leave 100 kB of its disk to others when the save of step 3 begins; None: not any more."""
    from wikillm.supervise.heartbeat import Heartbeat

    enter = getattr(Heartbeat.enter, "original", Heartbeat.enter)

    def filling_enter(self: Heartbeat, phase: str) -> None:
        enter(self, phase)
        if filler is not None and phase == "save" and self._step == 3:
            with filler.open("wb", buffering=0) as file:
                while shutil.disk_usage(filler.parent).free > 100_000:
                    file.write(bytes(4096))

    filling_enter.original = enter  # type: ignore[attr-defined]
    Heartbeat.enter = filling_enter  # type: ignore[method-assign]


def train_with_read_only_home(
    words: list[str], options: dict[str, Any], home: str
) -> dict[str, Any]:
    """Run `train` with a read-only HOME and no other folder set for compiled code."""
    mount(["-t", "tmpfs", "-o", "ro", "tmpfs", home])
    os.environ["HOME"] = home
    os.environ.pop("TORCH_EXTENSIONS_DIR", None)
    return train(words, **options)
