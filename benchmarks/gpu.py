"""Measure WikiLLM on this machine's GPU within a budget of seconds: `make gpu BUDGET=540`.

Runs the steps of gpu_steps.py in order of worth, each in a process and with a limit of its own.
OUT/STEP.json and OUT/STEP.log keep what came of it; a failure costs the other steps nothing. A
second call skips what the folder has of the same sources and device, and tries what failed last.
SIGTERM and the end of the budget stop the step that runs; the summary is written in any case.

    python benchmarks/gpu.py --budget 540
    python benchmarks/gpu.py --budget 200 --only tests losses
    python benchmarks/gpu.py --again mission --write   # and docs/measurements/gpu-DATE.md
    python benchmarks/gpu.py --pretend 24GiB           # the commands for a card of this memory
    python benchmarks/gpu.py --rehearse                # tiny shapes on this CPU
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

import psutil

from benchmarks.gpu_report import page, summary
from benchmarks.gpu_steps import Setting, Step, steps
from benchmarks.record import commit, import_path
from wikillm.cli.arguments import above_0
from wikillm.core.errors import DataError, WikiLLMError
from wikillm.core.units import parse_size
from wikillm.plan.gpus import find_gpu, gpu_by_driver_name

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL to the processes of a step."""
TEXT_MB = 8
NAMES = [step.name for step in steps()]


class Budget:
    """Seconds left; none after SIGTERM or SIGINT."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._until = 0.0

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=above_0, default=540, help="seconds (default 540)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="STEP", help=", ".join(NAMES))
    again = "measure these again; a failure keeps the older result"
    parser.add_argument("--again", nargs="+", choices=NAMES, default=[], metavar="STEP", help=again)
    out = "results (default $OUT, else runs/gpu)"
    parser.add_argument("--out", type=Path, help=out)
    scratch = "stores and runs, which are large (default OUT/scratch)"
    parser.add_argument("--scratch", type=Path, help=scratch)
    text = "any text that `wikillm prepare` reads. Default: what the demo finds, else generated"
    parser.add_argument("--text", help=text)
    tokenizer = "default: qwen2-tokenizer/ if it is here, else one trained on the text"
    parser.add_argument("--tokenizer", help=tokenizer)
    parser.add_argument("--write", action="store_true", help="write docs/measurements/gpu-DATE.md")
    pretend = "print the commands, run nothing; for this card, a known one or an amount of memory"
    parser.add_argument("--pretend", nargs="?", const="", metavar="GPU|SIZE", help=pretend)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on this CPU")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    budget = Budget(args.budget)
    device, memory = card()
    if args.rehearse:
        device, memory = "CPU rehearsal", find_gpu("h100").memory
    elif args.pretend is not None and (args.pretend or not device):
        device, memory = pretended(args.pretend or "h100")
    if not device:
        print("not run: no GPU here; --rehearse runs tiny shapes, --pretend shows the commands")
        return 3
    out = (args.out or Path(os.environ.get("OUT") or "runs/gpu")).resolve()
    scratch = (args.scratch or out / "scratch").resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    text, tokenizer = find_text(args, scratch)
    setting = Setting(out, scratch, text, tokenizer, memory, args.rehearse)
    chosen = [step for step in steps() if step.name in (args.only or NAMES)]
    if args.pretend is not None:
        print(f"for {device}, {memory / 2**30:.1f} GiB")
        for step in chosen:
            command = step.command(setting)
            words = "does not fit into this card" if command is None else shlex.join(command)
            print(
                f"{step.name} (at most {step.limit} s, begun with {step.least} s left)\n  {words}"
            )
        return 0
    identity = {"sources": sources(), "commit": commit(), "device": device}
    for step in in_order(chosen, out, identity, args.again):
        run_step(step, setting, budget, identity)
    found = read_results(out)
    print("\n" + summary(found))
    (out / "summary.md").write_text(page(found), encoding="utf-8")
    if args.write:
        file = REPO / f"docs/measurements/gpu-{time.strftime('%Y-%m-%d')}.md"
        file.write_text(page(found), encoding="utf-8")
        print(f"written to {file}")
    return 0 if all(found.get(step.name, {}).get("status") == "done" for step in chosen) else 1


def card() -> tuple[str, int]:
    """(name, usable bytes) of the first GPU; ("", 0) where there is none. Makes no CUDA context."""
    code = (
        "import torch; p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else 0;"
        "print(f'{p.name}|{p.total_memory}' if p else '|0')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name, _, size = done.stdout.strip().rpartition("|")
    known = gpu_by_driver_name(name)
    return name, min(int(size or 0), known.memory) if known else int(size or 0)


def pretended(name: str) -> tuple[str, int]:
    """(name, usable bytes) of a known GPU, or of a card with `name` as its memory."""
    try:
        return f"a card of {name}", parse_size(name)
    except ValueError:
        gpu = find_gpu(name)
        return gpu.name, gpu.memory


def find_text(args: argparse.Namespace, scratch: Path) -> tuple[str, str]:
    """(data.path, data.tokenizer)."""
    from wikillm.cli.demo import find_source

    here = REPO / "qwen2-tokenizer"
    default = "train:300" if args.rehearse else str(here) if here.is_dir() else "train:8000"
    tokenizer = absolute(args.tokenizer) if args.tokenizer else default
    if args.text:
        return absolute(args.text), tokenizer
    try:
        if not args.rehearse:
            return str(find_source(None)), tokenizer
    except DataError:
        pass
    return str(generated_text(scratch, 0.2 if args.rehearse else TEXT_MB)), tokenizer


def absolute(name: str) -> str:
    """A path of the caller's folder, since the steps run in the checkout; else the name itself."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def generated_text(folder: Path, megabytes: float) -> Path:
    """Words of random characters, frequent ones first: what a tokenizer can be trained on."""
    file = folder / "generated.jsonl"
    draw = random.Random(7)
    words = ["".join(chr(draw.randrange(0x4E00, 0x5200)) for _ in range(2)) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with open(file, "w", encoding="utf-8") as out:
        while out.tell() < megabytes * 1e6:
            text = "，".join(draw.choices(words, weights, k=300))
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return file


def sources() -> str:
    """A digest of what is measured, so that two states without a commit differ."""
    digest = hashlib.sha256()
    for folder in ("wikillm", "benchmarks", "ds_configs", "tests/gpu"):
        for file in sorted((REPO / folder).rglob("*")):
            if file.suffix in (".py", ".json", ".yaml"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def in_order(
    chosen: list[Step], out: Path, identity: dict[str, str], again: list[str]
) -> list[Step]:
    """What is not there yet, then what did not succeed before. Steps that are done are left out."""
    known = read_results(out)

    def tried(step: Step) -> str:
        found = known.get(step.name, {})
        same = all(found.get(key) == identity[key] for key in ("sources", "device"))
        return str(found["status"]) if same and step.name not in again else "new"

    for step in chosen:
        if tried(step) == "done":
            print(f"== {step.name}: kept, measured {known[step.name]['date']}")
    waiting = [step for step in chosen if tried(step) != "done"]
    return sorted(waiting, key=lambda step: tried(step) != "new")


def run_step(step: Step, setting: Setting, budget: Budget, identity: dict[str, str]) -> None:
    """Runs one step and writes OUT/STEP.json, unless that would replace a good result."""
    command = step.command(setting)
    if command is None or budget.left < step.least:
        why = "the card is too small" if command is None else f"{budget.left:.0f} s were left"
        print(f"== {step.name}: not begun, {why}", flush=True)
        file = setting.out / f"{step.name}.json"
        if not file.exists() or json.loads(file.read_text("utf-8"))["status"] == "not begun":
            record = {"step": step.name, "status": "not begun", "reason": why, **identity}
            file.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return
    raw = setting.out / f"{step.name}.raw.json"
    raw.unlink(missing_ok=True)
    shutil.rmtree(setting.scratch / f"run-{step.name}", ignore_errors=True)
    began = time.monotonic()
    log = setting.out / f"{step.name}.log"
    limit = step.limit * (4.0 if setting.rehearse else 1.0)  # a CPU may be shared
    code = run_command(command, log, min(limit, budget.left), budget)
    record: dict[str, Any] = {
        "step": step.name,
        "what": step.what,
        **identity,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": without_folders(shlex.join(["python", *command[1:]]), setting),
        "code": code,
        "seconds": round(time.monotonic() - began, 1),
        "status": "done" if code == 0 else "stopped" if code is None else "failed",
    }
    if code != 0:
        record["reason"] = without_folders(last_words(log), setting)
    try:
        record["result"] = step.result(setting)
    except (OSError, ValueError, KeyError, IndexError, SyntaxError) as error:
        if code == 0:
            record |= {"status": "failed", "reason": f"no result: {error}"}
    raw.unlink(missing_ok=True)
    keep(setting.out, record)
    print(f"== {step.name}: {record['status']} in {record['seconds']:.0f} s", flush=True)


def without_folders(text: str, setting: Setting) -> str:
    """What a page can say: names instead of folders of this machine."""
    for folder, name in ((setting.scratch, "SCRATCH"), (setting.out, "OUT"), (REPO, ".")):
        text = text.replace(str(folder), name)
    for source in filter(os.path.isabs, (setting.text, setting.tokenizer)):
        text = text.replace(source, Path(source).name)
    return text


def keep(out: Path, record: dict[str, Any]) -> None:
    """A try that did not succeed goes beside a good result, and replaces anything else."""
    file = out / f"{record['step']}.json"
    is_good = file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] == "done"
    if record["status"] != "done" and is_good:
        file = out / f"{record['step']}.later.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def run_command(command: list[str], log: Path, limit: float, budget: Budget) -> int | None:
    """Its exit code; None when it was stopped at the limit or by a signal."""
    environ = os.environ | {
        "PYTHONPATH": import_path(),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    until = time.monotonic() + limit
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=REPO, env=environ,
                                   start_new_session=True)  # fmt: skip
        while process.poll() is None:
            if time.monotonic() > until or not budget.left:
                end(process)
                return None
            time.sleep(0.2)
    return process.returncode


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, ranks in sessions of their own included."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        family = [first, *first.children(recursive=True)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, family = psutil.wait_procs(family, timeout=GRACE)
    process.wait()


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    errors = named or [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["no output"])[-1].strip()[:200]


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """{step: its record}, in order of worth."""
    found = {}
    for name in NAMES:
        file = out / f"{name}.json"
        if file.is_file():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except WikiLLMError as error:  # of a name that --pretend does not know
        raise SystemExit(str(error)) from None
