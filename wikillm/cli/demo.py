"""`wikillm demo`: every step from a dump to generated text. Each step shows the command that runs
it alone.

A MediaWiki dump (or any other source) -> documents -> tokenizer -> tokens -> a small model trained
under DeepSpeed ZeRO-2 -> validation loss against the unigram baseline -> a Hugging Face folder ->
text from plain transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.core.errors import DataError, MachineError
from wikillm.core.log import say
from wikillm.core.units import format_seconds

if TYPE_CHECKING:
    from wikillm.data.store.store import Store

FIRST_CHOICES = (
    "data/wikipedia-zh-cn-*.json",
    "WIKI_CN/wikipedia-zh-cn-*.json",
    "data/zhwiki-*.xml.bz2",
    "WIKI_CN/zhwiki-*.xml.bz2",
)
PACKAGED_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
"""A dump in gensim's wheel, CC BY-SA."""
SEQUENCES = 8  # per optimizer step, in presets/runs/demo.yaml
PROMPTS = ("The history of", "In the 19th century", "The")
CHINESE_PROMPTS = ("中国的首都是", "历史", "他")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "a file of your own (JSON, JSON Lines, MediaWiki dump, .gz, .bz2)"
    add("--data", metavar="PATH", help=help)
    help = "how much of its text to read (default 6)"
    add("--demo-mb", type=float, default=6.0, metavar="MB", help=help)
    help = "the run directory (default runs/demo, or with the next free number)"
    add("--run-dir", metavar="DIR", help=help)
    add("--processes", type=int, metavar="N", help="default: all GPUs, or 2 on CPU")
    add("--steps", type=int, metavar="N", help="optimizer steps (default: the preset's)")


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    # The words of a command line; every step below uses them.
    source = find_source(args.data)
    run_dir = Path(args.run_dir) if args.run_dir else free_run_dir(Path("runs/demo"))
    words = [
        f"data.path=[{quoted(source)}]",
        f"data.max_text_bytes={round(args.demo_mb * 1e6)}",
        f"run.dir={run_dir}",
    ]
    if args.steps is not None:
        words.append(f"train.max_steps={args.steps}")

    say(f"== 1/5  documents, tokenizer, tokens  ({source.name})")
    store = prepare(words)
    words += [f"observe.sample_prompts=[{', '.join(prompts_for(store))}]"]
    say()
    say("== 2/5  training")
    train(words, args.processes)
    say()
    say("== 3/5  held-out loss of this model and of a unigram model")
    run_command("eval", str(run_dir))
    say()
    say("== 4/5  export")
    target = run_dir / "export"
    run_command("export", str(run_dir), "--to", str(target))
    say()
    say("== 5/5  text from plain transformers, without WikiLLM")
    generate(target, prompts_for(store)[0])
    say()
    print_results(run_dir, target)
    say(f"           the whole demo took {format_seconds(time.monotonic() - start)}")
    return 0


def find_source(asked: str | None) -> Path:
    """The user's file, else Chinese Wikipedia in its usual folders, else the dump in gensim's
    wheel. Raises DataError without any of them."""
    import importlib.util

    if asked:
        return Path(asked)  # `prepare` checks it
    for pattern in FIRST_CHOICES:
        if found := sorted(Path().glob(pattern)):
            return found[0]
    gensim = importlib.util.find_spec("gensim")
    if gensim and gensim.origin:
        packaged = Path(gensim.origin).parent / "test" / "test_data" / PACKAGED_DUMP
        if packaged.is_file():
            return packaged
    raise DataError(
        "There is no text for the demo.",
        got="neither data/ nor WIKI_CN/ has Chinese Wikipedia, and the package gensim (whose tests "
        "have a real dump) is not installed",
        fix="pip install 'wikillm[demo]', or wikillm demo --data FILE",
    )


def free_run_dir(base: Path) -> Path:
    """`base`, or base-2, base-3 ...: every demo is a new run."""
    folder = base
    number = 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def quoted(path: Path) -> str:
    """A path as a quoted YAML scalar, so that spaces, commas and brackets do not split it."""
    return json.dumps(str(path), ensure_ascii=False)


def prepare(words: list[str]) -> Store:
    from wikillm.config.load import load
    from wikillm.data.prepare.prepare import prepare_store

    show_command("wikillm prepare --config demo", words[:2])
    store = prepare_store(load("demo", words).config.data)
    say(store.manifest.funnel.table())
    if store.manifest.stopped_at_text_limit:
        say(f"only the first part of the text was read: {words[1]} (set by DEMO_MB)")
    return store


def train(words: list[str], processes: int | None) -> None:
    """Run the `deepspeed` launcher, as a user would."""
    import subprocess

    import torch

    from wikillm.core.world import free_port

    # One process per GPU; on a machine without a GPU, two ranks on the CPU.
    on_gpu = torch.cuda.is_available()
    count = processes or (torch.cuda.device_count() if on_gpu else min(2, os.cpu_count() or 1))
    count, micro_batch = share_out(count)
    launcher = Path(sys.executable).with_name("deepspeed")
    options = ["--deepspeed", "zero2", "--config", "demo", *words]
    options.append(f"train.per_device_train_batch_size={micro_batch}")
    show_command(f"deepspeed --num_gpus {count} train.py", options)
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if not on_gpu:  # the launcher's "GPUs" are ranks on the CPU
        threads = max(1, (os.cpu_count() or 1) // count)
        environ = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), **environ}
    command = [sys.executable, str(launcher), "--num_gpus", str(count), "--master_port"]
    command += [str(free_port()), "--quiet", "--no_local_rank"]
    command += ["--module", "wikillm", "train", *options]
    code = subprocess.run(command, env=environ, check=False).returncode
    if code != 0:
        raise MachineError(
            "The training processes failed.",
            got=f"exit code {code}; see above, and exit.json and logs/ in the run directory",
            fix="correct the cause, then run the demo again",
        )


def share_out(processes: int) -> tuple[int, int]:
    """(processes, sequences per micro-batch), such that each step has 8 sequences in total."""
    count = max(n for n in (1, 2, 4, 8) if n <= max(1, processes))
    return count, min(4, SEQUENCES // count)


def run_command(*words: str) -> None:
    """Show a command of WikiLLM and run it here."""
    from wikillm.cli.main import main

    show_command("wikillm", words)
    if main(words) != 0:
        raise MachineError(f"`wikillm {words[0]}` failed; see above.")


PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
inputs = tokenizer(PROMPT, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=60, do_sample=True, top_p=0.9, temperature=0.8)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def generate(folder: Path, prompt: str) -> None:
    """Print a program that uses the exported folder, and run it in a process without WikiLLM."""
    import subprocess

    program = PLAIN.replace("FOLDER", repr(str(folder)), 2).replace("PROMPT", repr(prompt))
    say("\n".join("    " + line for line in program.splitlines()))
    head = "import sys, torch; sys.modules['wikillm'] = None; torch.manual_seed(0)\n"
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", head + program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise MachineError("Plain transformers could not use the exported folder.", got=last[0])
    say(done.stdout.rstrip())


def prompts_for(store: Store) -> tuple[str, ...]:
    """Prompts in Chinese if a fifth of the held-out text is hanzi, else in English."""
    val = store.val
    text = store.tokenizer().decode(val.read(0, min(2000, val.n_tokens)).tolist())
    chinese = sum("\u4e00" <= ch <= "\u9fff" for ch in text) > 0.2 * len(text)
    return CHINESE_PROMPTS if chinese else PROMPTS


def print_results(run_dir: Path, target: Path) -> None:
    """Print the results, where the files are, and the next commands."""
    from wikillm.observe.sinks import read_metrics

    metrics = read_metrics(run_dir / "metrics.jsonl")
    last = metrics[-1]
    say("== done")
    speed = f"{last['tokens_per_second']:,.0f} tokens/s"
    say(f"training   {last['step']:,} steps, {last['tokens']:,} tokens, {speed}")
    say(f"loss       {metrics[0]['loss']:.3f} -> {last['loss']:.3f}")
    say(f"run        {run_dir}: metrics.jsonl, checkpoints/, config.resolved.yaml, logs/")
    say(f"report     {run_dir / 'report.html'}: curves, samples, data, settings")
    say(f"model      {target}: loads with plain transformers")
    program = ".venv/bin/wikillm" if Path(".venv/bin/wikillm").exists() else "wikillm"
    say(f'next       {program} generate {shlex.quote(str(target))} --prompt "..."')
    say(f"           {program} train --size 1m data.path=your-file.jsonl data.tokenizer=train:4000")


def show_command(command: str, words: Sequence[str]) -> None:
    say(f"$ {command} {shlex.join(words)}".rstrip())
