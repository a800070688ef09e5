"""Submits, follows and fetches tasks of SwanLab Launch, and uploads data sets.

The functions take a `SwanLabApi` that is logged in. They upload and create tasks at once: asking
the user before is the caller's duty.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from wikillm.core.errors import ConfigError, MachineError, WikiLLMError
from wikillm.core.files import files_below
from wikillm.launch.swanlab_api import FINISHED, SwanLabApi, Task
from wikillm.launch.swanlab_manifest import SwanLabManifest
from wikillm.launch.swanlab_objects import ObjectStore
from wikillm.launch.swanlab_pack import Packing, write_zip

MAX_LOST = 5
"""Number of polls in a row without an answer, each tried 3 times, after which `follow` raises."""


def submit(api: SwanLabApi, manifest: SwanLabManifest, packing: Packing) -> str | None:
    """Upload the archive and create the task. Returns its id, or None if the id is unknown."""
    store = ObjectStore(api.credentials, timeout=api.timeout)
    with tempfile.TemporaryDirectory(prefix="wikillm-") as folder:
        archive = Path(folder) / "job.zip"
        write_zip(manifest, packing, archive)
        source = store.put(f"tasks/{int(time.time() * 1000)}.zip", archive)
    body = {
        "src": source,
        "index": manifest.entry,
        "python": f"python{manifest.python}",
        "name": manifest.name,
        "desc": manifest.desc,
        "combo": manifest.combo,
        "datasets": [manifest.volume_id] if manifest.volume_id else None,
    }
    # Create the task. If the service leaves the id out of its answer, look for a task of this name
    # that did not exist before.
    known = {task.id for task in api.tasks(20)}
    identifier = api.create_task({name: value for name, value in body.items() if value})
    if identifier is not None:
        return identifier
    new = [task.id for task in api.tasks(20) if task.name == manifest.name and task.id not in known]
    return new[0] if len(new) == 1 else None


def follow(
    api: SwanLabApi, identifier: str, *, every: float, on_change: Callable[[Task], None]
) -> Task:
    """Poll the task every `every` seconds until it has ended, and return it.

    Raises MachineError if the service stops answering. The task itself is not affected.
    """
    last = ""
    unanswered = 0
    while True:
        try:
            task = api.task(identifier)
        except MachineError:
            unanswered += 1
            if unanswered >= MAX_LOST or not last:
                raise
        else:
            unanswered = 0
            if task.status != last:
                last = task.status
                on_change(task)
            if task.status in FINISHED:
                return task
        time.sleep(every)


def fetch_output(api: SwanLabApi, task: Task, folder: Path) -> Path | None:
    """Download a task's output into `folder`. None if the task has no output.

    Raises ConfigError if a file of that name exists.
    """
    if not task.output.path:
        return None
    path = PurePosixPath(task.output.path)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise MachineError(
            "SwanLab names an output that is not a path.", got=repr(task.output.path)
        )
    target = folder / path.name
    if target.exists():
        what = "The output would overwrite a file."
        raise ConfigError(what, got=str(target), fix="--to ANOTHER_FOLDER")
    ObjectStore(api.credentials, timeout=api.timeout).get(f"outputs/{path}", target)
    return target


def data_files(path: Path) -> list[tuple[Path, str]]:
    """(file, name in the data set) for a file or for all files of a folder. Raises ConfigError."""
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise ConfigError("There is no such file or folder.", got=str(path))
    links = [str(found) for found in sorted(path.rglob("*")) if found.is_symlink()]
    if links:
        what = "Symbolic links are not uploaded."
        raise ConfigError(what, got="\n".join(links[:5]), fix="copy what they point to")
    files = [(found, found.relative_to(path).as_posix()) for found in files_below(path)]
    if not files:
        raise ConfigError("The folder has no files.", got=str(path))
    return files


def upload_data(
    api: SwanLabApi,
    files: list[tuple[Path, str]],
    name: str,
    desc: str | None,
    on_bytes: Callable[[int], None],
) -> str:
    """Create a data set, upload the files and return its id. After an error, mark it as failed."""
    store = ObjectStore(api.credentials, timeout=api.timeout)
    identifier = api.create_dataset(name, desc)
    try:
        for path, inside in files:
            store.put(f"datasets/{identifier}/{name}/{inside}", path, on_bytes)
    except BaseException:
        with suppress(WikiLLMError):  # report the first error instead
            api.finish_dataset(identifier, ok=False)
        raise
    api.finish_dataset(identifier, ok=True)
    return identifier
