"""What a user does with SwanLab Launch: submit a folder, follow a task, fetch its output, upload a data set.

In: a logged-in `SwanLabApi`. These functions send what they are given: asking the user first is the caller's part.
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
from wikillm.launch.swanlab_manifest import Manifest
from wikillm.launch.swanlab_objects import ObjectStore
from wikillm.launch.swanlab_pack import Packing, write_zip

MOST_LOST = 5
"""Polls in a row without an answer (each tried three times) that end following."""


def submit(api: SwanLabApi, manifest: Manifest, packing: Packing) -> str | None:
    """Upload the archive and create the task. Returns its id; None when the service does not tell it."""
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
    }
    body |= {"desc": manifest.desc} if manifest.desc else {}
    body |= {"combo": manifest.combo} if manifest.combo else {}
    known = {task.id for task in api.tasks(20)}
    datasets = {"datasets": [manifest.volume_id]} if manifest.volume_id else {}
    identifier = api.create_task({**body, **datasets})
    if identifier is not None:
        return identifier
    new = [task.id for task in api.tasks(20) if task.name == manifest.name and task.id not in known]
    return new[0] if len(new) == 1 else None


def follow(api: SwanLabApi, identifier: str, *, every: float, tell: Callable[[Task], None]) -> Task:
    """Ask every so many seconds until the task has ended; `tell` hears of each change. Returns its last state.

    Raises MachineError when the service stays silent; the task itself goes on.
    """
    last, lost = "", 0
    while True:
        try:
            task, lost = api.task(identifier), 0
        except MachineError:
            lost += 1
            if lost >= MOST_LOST or not last:
                raise
        else:
            if task.status != last:
                last = task.status
                tell(task)
            if task.status in FINISHED:
                return task
        time.sleep(every)


def fetch_output(api: SwanLabApi, task: Task, folder: Path) -> Path | None:
    """Download a task's output into `folder`, under its own name. None when it has none. Never overwrites a file."""
    if task.output is None:
        return None
    path = PurePosixPath(task.output)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise MachineError("SwanLab names an output that is no path.", got=repr(task.output))
    target = folder / path.name
    if target.exists():
        raise ConfigError(
            "The output would overwrite a file.", got=str(target), fix="--to ANOTHER_FOLDER"
        )
    ObjectStore(api.credentials, timeout=api.timeout).get(f"outputs/{path}", target)
    return target


def data_files(path: Path) -> list[tuple[Path, str]]:
    """(file, name in the data set) of a file or of all files below a folder. Raises ConfigError when there is none."""
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise ConfigError("There is no such file or folder.", got=str(path))
    links = [str(found) for found in sorted(path.rglob("*")) if found.is_symlink()]
    if links:
        raise ConfigError(
            "Symbolic links are not uploaded.",
            got="\n".join(links[:5]),
            fix="copy what they point to",
        )
    files = [(found, found.relative_to(path).as_posix()) for found in files_below(path)]
    if not files:
        raise ConfigError("The folder has no files.", got=str(path))
    return files


def upload_data(
    api: SwanLabApi,
    files: list[tuple[Path, str]],
    name: str,
    desc: str | None,
    on_bytes: Callable[[int], None] = lambda sent: None,
) -> str:
    """Create a data set and upload the files; returns its id. After a failure it is marked as failed."""
    store = ObjectStore(api.credentials, timeout=api.timeout)
    identifier = api.create_dataset(name, desc)
    try:
        for path, inside in files:
            store.put(f"datasets/{identifier}/{name}/{inside}", path, on_bytes)
    except BaseException:
        with suppress(WikiLLMError):  # the first error matters more
            api.finish_dataset(identifier, ok=False)
        raise
    api.finish_dataset(identifier, ok=True)
    return identifier
