"""`wikillm launch swanlab`: check the manifest, list and write the archive, submit it, and show
the state of tasks and data.

Only --submit, `task ...` and `data ...` contact the service. Before code, data or the key leave the
machine, the command lists what would be sent where, and asks. SwanLab's last client for the service
is of 2024-12-23 and was removed in SwanLab 0.4.3 (2025-01-17). Whether the service still responds
is unknown; this module was never run against it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.files import write_atomic
from wikillm.core.units import format_size
from wikillm.launch.swanlab_account import Account, find_account
from wikillm.launch.swanlab_api import CONTRACT, SwanLabApi, Task
from wikillm.launch.swanlab_jobs import data_files, fetch_output, follow, submit, upload_data
from wikillm.launch.swanlab_manifest import FILE_NAME, TEMPLATE, SwanLabManifest, read_manifest
from wikillm.launch.swanlab_objects import check_installed
from wikillm.launch.swanlab_pack import Packing, plan_packing, write_zip

_ONE_PART = 2**20  # bytes; a larger archive is uploaded in several parts
_EVERY = 10.0  # seconds
_TIMEOUT = 30.0
_USAGE = {
    "task": "task list | status ID | follow ID | stop ID | fetch ID [--to FOLDER]",
    "data": "data list | data upload FILE|FOLDER [--name NAME] [--desc TEXT]",
}


def run_swanlab(args: argparse.Namespace) -> int:
    """Run one action: --init, --print, --zip, --submit, `task ...` or `data ...`. --print and --zip
    may be combined."""
    if args.rest[:1] in (["task"], ["data"]):
        return _run_service(args)
    _refuse_what_a_job_cannot_have(args)
    path = args.file or Path(FILE_NAME)
    if args.init:
        if path.exists():
            fix = "edit it, or name another file: -f FILE"
            raise ConfigError("There is a manifest already.", got=str(path), fix=fix)
        write_atomic(path, TEMPLATE)
        print(f"wrote {path}; next: wikillm launch swanlab --print")
        return 0
    if not (args.show or args.zip or args.submit):
        fix = "wikillm launch swanlab --print\nor --zip job.zip, --submit"
        raise ConfigError("`wikillm launch swanlab` needs --print, --zip or --submit.", fix=fix)
    manifest = read_manifest(path)
    packing = plan_packing(manifest, without=args.zip)
    if args.show:
        print("\n".join(_lines(manifest, packing)))
    for warning in packing.warnings:
        print(f"warning: {warning}")
    if args.zip:
        size = write_zip(manifest, packing, args.zip)
        parts = "one part" if size <= _ONE_PART else "several parts, because it exceeds 1 MiB"
        files = f"{len(packing.files)} files, {format_size(size)}"
        print(f"wrote {args.zip}: {files} (an upload in {parts})")
    if args.submit:
        return _submit(args, manifest, packing)
    return 0


def _refuse_what_a_job_cannot_have(args: argparse.Namespace) -> None:
    if args.go:
        fix = "wikillm launch swanlab --submit"
        raise ConfigError("A SwanLab Launch job is submitted.", got="--go", fix=fix)
    for flag in ("follow", "to"):
        if getattr(args, flag) and not args.submit:
            fix = "wikillm launch swanlab task follow ID, task fetch ID"
            raise ConfigError(f"--{flag} goes with --submit.", fix=fix)
    if args.to and not args.follow:
        raise ConfigError("--to needs a task that has ended.", fix="add --follow")
    words = [*args.rest, *filter(None, (args.config, args.deepspeed))]
    if words:
        raise ConfigError(
            "A SwanLab Launch job takes no arguments: it runs `python ENTRY`.",
            got=" ".join(words),
            fix="name your own file as spec.entry: "
            "from wikillm.cli.main import main; main(['train', 'train.max_steps=100'])",
        )


def _lines(manifest: SwanLabManifest, packing: Packing) -> list[str]:
    machine = manifest.combo or "the default machine"
    head = [
        f"name       {manifest.name}{f': {manifest.desc}' if manifest.desc else ''}",
        f"runs       python {manifest.entry} (Python {manifest.python}) on {machine}, 4 h at most",
        f"folder     {manifest.folder.absolute()}",
    ]
    width = max(len(format_size(file.size)) for file in packing.files)
    listed = [f"  {format_size(file.size):>{width}}  {file.name}" for file in packing.files]
    total = f"{len(packing.files)} files, {format_size(packing.size)} before compression"
    return [*head, *listed, total]


def _submit(args: argparse.Namespace, manifest: SwanLabManifest, packing: Packing) -> int:
    """Upload and start; with --follow wait for the end. Returns 0, or raises for a failed task."""
    check_installed()
    account = find_account()
    folder = manifest.folder.absolute()
    sent = [
        f"code       {len(packing.files)} files, {format_size(packing.size)}, of {folder} "
        "(wikillm launch swanlab --print lists them)",
        "key        your SwanLab key is sent inside the task: anyone who runs it can use the key",
    ]
    if not _confirmed(args, account, sent, "Upload this and start the task?"):
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


def _run_service(args: argparse.Namespace) -> int:
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
    rows = {
        "task": f"{task.id}  {task.name}",
        "status": task.status,
        "runs": f"{task.python} {task.entry}" + (f" on {task.combo}" if task.combo else ""),
        "created": task.created,
        "started": task.started,
        "finished": task.finished,
        "output": output,
        "message": task.message,
    }
    return [f"{name:<10} {value}" for name, value in rows.items() if value]


def _confirmed(args: argparse.Namespace, account: Account, sent: list[str], question: str) -> bool:
    """List what would leave the machine, and ask. Without a terminal, --yes is required."""
    print(f"to         {account.host}, and the object store that it names")
    print("\n".join([*sent, f"note       the contract is {CONTRACT}"]))
    if args.yes:
        return True
    if not sys.stdin.isatty():
        missing = "The upload must be confirmed, and there is no terminal."
        raise ConfigError(missing, fix="--yes")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("nothing was sent")
    return False


def _list_data(api: SwanLabApi) -> int:
    found = api.datasets()
    for dataset in found:
        cells = (dataset.id, dataset.status, dataset.name, dataset.desc)
        print("  ".join(filter(None, cells)))
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
    sent = [f"data       {len(files)} file{s} of {path.absolute()}, {format_size(size)}"]
    if not _confirmed(args, account, sent, "Upload this?"):
        return 0
    with SwanLabApi(account, timeout=args.timeout or _TIMEOUT) as api:
        identifier = upload_data(api, files, name, args.desc, _progress(size))
    volume = f"{{name: {name}, id: {identifier}}}"
    print(f"data set   {identifier}; in swanlab.yaml: volumes: [{volume}]")
    return 0


def _progress(size: int) -> Callable[[int], None]:
    """A function that counts sent bytes, and prints a line after each tenth of `size`."""
    total = 0

    def add(sent: int) -> None:
        nonlocal total
        tenths_before = 10 * total // max(1, size)
        total += sent
        if 10 * total // max(1, size) > tenths_before:
            print(f"sent       {format_size(total)} of {format_size(size)}", flush=True)

    return add
