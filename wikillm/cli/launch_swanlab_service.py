"""The part of `wikillm launch swanlab` that talks to the service: --submit, `task ...`, `data ...`.

Before code, data or the key leave the machine, the command lists what would be sent where, and
asks. This module was never run against the real service.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.units import format_size
from wikillm.launch.swanlab_account import find_account
from wikillm.launch.swanlab_api import CONTRACT, SwanLabApi, Task
from wikillm.launch.swanlab_jobs import data_files, fetch_output, follow, submit, upload_data
from wikillm.launch.swanlab_manifest import SwanLabManifest
from wikillm.launch.swanlab_objects import check_installed
from wikillm.launch.swanlab_pack import Packing

_EVERY = 10.0  # seconds
_TIMEOUT = 30.0
_USAGE = {
    "task": "task list | status ID | follow ID | stop ID | fetch ID [--to FOLDER]",
    "data": "data list | data upload FILE|FOLDER [--name NAME] [--desc TEXT]",
}


def submit_folder(args: argparse.Namespace, manifest: SwanLabManifest, packing: Packing) -> int:
    """Upload and start; with --follow wait for the end. Returns 0, or raises for a failed task."""
    check_installed()
    account = find_account()
    folder = manifest.folder.absolute()
    what = [
        f"to         {account.host}, and the object store that it names",
        f"code       {len(packing.files)} files, {format_size(packing.size)}, of {folder} "
        "(wikillm launch swanlab --print lists them)",
        "key        your SwanLab key is sent inside the task: anyone who runs it can use the key",
        f"note       the contract is {CONTRACT}",
    ]
    if not _confirm(args, what, "Upload this and start the task?"):
        print("nothing was sent")
        return 0
    with SwanLabApi(account, timeout=args.timeout or _TIMEOUT) as api:
        identifier = submit(api, manifest, packing)
        if identifier is None:
            no_id = "The task was created, but the service returned no id."
            raise MachineError(no_id, fix="wikillm launch swanlab task list")
        print(f"task       {identifier}")
        if not args.follow:
            print(f"next       wikillm launch swanlab task follow {identifier}")
            return 0
        return _follow(args, api, identifier)


def run_service(args: argparse.Namespace) -> int:
    """`task VERB [ID]` and `data VERB [PATH]`."""
    noun, verb, *words = [*args.rest, ""] if len(args.rest) == 1 else args.rest
    needs = {
        "task": {"list": 0, "status": 1, "follow": 1, "stop": 1, "fetch": 1},
        "data": {"list": 0, "upload": 1},
    }[noun]
    if needs.get(verb) != len(words):
        what = f"`wikillm launch swanlab {noun}` needs a verb and its argument."
        raise ConfigError(what, got=" ".join(args.rest), fix=_USAGE[noun])
    if noun == "data" and verb == "upload":
        return _upload(args, Path(words[0]))
    if verb == "fetch":
        check_installed()
    with SwanLabApi(find_account(), timeout=args.timeout or _TIMEOUT) as api:
        if noun == "data":
            return _list_data(api)
        return _task(args, api, verb, words)


def _task(args: argparse.Namespace, api: SwanLabApi, verb: str, words: list[str]) -> int:
    if verb == "list":
        tasks = api.tasks(20)
        for task in tasks:
            print(f"{task.id}  {task.status:<9}  {task.created}  {task.name}")
        if not tasks:
            print("there are no tasks")
        return 0
    identifier = words[0]
    if verb == "follow":
        return _follow(args, api, identifier)
    if verb == "stop":
        api.stop(identifier)
        status = f"wikillm launch swanlab task status {identifier}"
        print(f"requested the stop of {identifier}; it can take minutes: {status}")
        return 0
    task = api.task(identifier)
    if verb == "status":
        print("\n".join(_describe(task)))
        return 0
    _fetch(api, task, args.to or Path())
    return 0


def _follow(args: argparse.Namespace, api: SwanLabApi, identifier: str) -> int:
    def on_change(task: Task) -> None:
        print(f"{time.strftime('%H:%M:%S')}   {task.status}", flush=True)

    try:
        task = follow(api, identifier, every=args.every or _EVERY, on_change=on_change)
    except (KeyboardInterrupt, MachineError):
        stop = f"wikillm launch swanlab task stop {identifier}"
        print(f"the task continues; to stop it: {stop}", file=sys.stderr, flush=True)
        raise
    if args.to:
        _fetch(api, task, args.to)
    if task.status != "COMPLETED":
        raise MachineError(f"The task {identifier} ended as {task.status}.", got=task.message)
    return 0


def _fetch(api: SwanLabApi, task: Task, folder: Path) -> None:
    target = fetch_output(api, task, folder)
    if target is None:
        print(f"the task {task.id} has no output ({task.status})")
    else:
        print(f"wrote {target}, {format_size(target.stat().st_size)}")


def _describe(task: Task) -> list[str]:
    output = task.output.path and f"{task.output.path} ({format_size(task.output.size or 0)})"
    facts = {
        "task": f"{task.id}  {task.name}",
        "status": task.status,
        "runs": f"{task.python} {task.entry}" + (f" on {task.combo}" if task.combo else ""),
        "created": task.created,
        "started": task.started,
        "finished": task.finished,
        "output": output,
        "message": task.message,
    }
    return [f"{name:<10} {value}" for name, value in facts.items() if value]


def _confirm(args: argparse.Namespace, what: list[str], question: str) -> bool:
    """List what would leave the machine, and ask. Without a terminal, --yes is required."""
    print("\n".join(what))
    if args.yes:
        return True
    if not sys.stdin.isatty():
        missing = "The upload must be confirmed, and there is no terminal."
        raise ConfigError(missing, fix="--yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _list_data(api: SwanLabApi) -> int:
    found = api.datasets()
    for dataset in found:
        facts = (dataset.id, dataset.status, dataset.name, dataset.desc)
        print("  ".join(filter(None, facts)))
    if not found:
        print("there are no data sets")
    return 0


def _upload(args: argparse.Namespace, path: Path) -> int:
    check_installed()
    account = find_account()
    files = data_files(path)
    name = args.name or path.resolve().name
    if not name.isprintable() or "/" in name or name in (".", ".."):
        rule = "A data set's name must be one path component, because it becomes /data/NAME/."
        raise ConfigError(rule, got=repr(name))
    size = sum(file.stat().st_size for file, _ in files)
    s = "s" if len(files) > 1 else ""
    what = [
        f"to         {account.host}, and the object store that it names",
        f"data       {len(files)} file{s} of {path.absolute()}, {format_size(size)}",
        f"note       the contract is {CONTRACT}",
    ]
    if not _confirm(args, what, "Upload this?"):
        print("nothing was sent")
        return 0
    with SwanLabApi(account, timeout=args.timeout or _TIMEOUT) as api:
        identifier = upload_data(api, files, name, args.desc, _Progress(size))
    volume = f"{{name: {name}, id: {identifier}}}"
    print(f"data set   {identifier}; in swanlab.yaml: volumes: [{volume}]")
    return 0


class _Progress:
    """Print a line after each tenth of the bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0
        self.shown = 0

    def __call__(self, sent: int) -> None:
        self.sent += sent
        tenth = 10 * self.sent // max(1, self.size)
        if tenth > self.shown:
            self.shown = tenth
            print(f"sent       {format_size(self.sent)} of {format_size(self.size)}", flush=True)
