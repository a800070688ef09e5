"""Target `sky`: a SkyPilot task. Data, stores and the run directory are on a persistent storage.

The disk of a preempted machine is lost, so the run directory is on the storage and the task has
`--resume auto`. For one machine the storage is a bucket, written through a cache on the disk. For
several machines, which must see the same run directory, it is a SkyPilot volume. Variables with
secrets are declared as secrets. Tests use SkyPilot's own parser (0.14.1) and run the shell part;
nothing was run on a cloud.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import replace
from typing import Any

from wikillm import __version__
from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import to_yaml

_KIND = re.compile(r"[A-Za-z0-9][\w.-]{0,62}")
_URL = re.compile(r"(s3|gs|r2|cos|oci|nebius|https|vastdata|cw)://[\w./:@-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,50}[a-z0-9]")
ENVIRONMENT = "$HOME/wikillm-env"


def sky(launch: Launch) -> Rendering:
    """A task that starts torchrun on each node. Raises ConfigError for an incomplete launch."""
    if launch.gpu_kind is None or not _KIND.fullmatch(launch.gpu_kind):
        what = "SkyPilot needs a kind of GPU."
        raise ConfigError(what, got=launch.gpu_kind, fix="--gpu H100 --gpus-per-node 8")
    launch.require_gpus("SkyPilot")
    launch.require_mount("SkyPilot", "storage")
    mount = launch.workdir
    secrets = [name for name in launch.variables if name in launch.secrets]
    plain = [name for name in launch.variables if name not in launch.secrets]
    where, about = _storage(launch, mount)
    task: dict[str, Any] = {
        "name": launch.name,
        "resources": {"accelerators": f"{launch.gpu_kind}:{launch.gpus}"},
        "num_nodes": launch.nodes,
        "workdir": ".",
        **where,
        **({"envs": dict.fromkeys(plain)} if plain else {}),
        **({"secrets": dict.fromkeys(secrets)} if secrets else {}),
        "setup": _setup(launch),
        "run": _run(launch, mount),
    }
    file = f"{launch.name}.sky.yaml"
    # The flags have only names: sky reads the values from its own environment.
    flags = [word for name in plain for word in ("--env", name)]
    flags += [word for name in secrets for word in ("--secret", name)]
    jobs = shlex.join(("sky", "jobs", "launch", *flags, file))
    head = [
        f"# Written by: {launch.command}",
        *(f"# {line}" for line in about),
        f"# Started again by SkyPilot after a preemption: {jobs}",
    ]
    return Rendering(to_yaml(head, task), (Step(("sky", "launch", *flags, file)),), file=file)


def _storage(launch: Launch, mount: str) -> tuple[dict[str, Any], list[str]]:
    """The `file_mounts` or `volumes` of the task, and comment lines about them."""
    given = launch.storage
    is_bucket = _URL.fullmatch(given) is not None if given else launch.nodes == 1
    if given and not is_bucket and not _NAME.fullmatch(given):
        raise ConfigError(
            "--storage must be a bucket or a SkyPilot volume.",
            got=repr(given),
            fix="--storage s3://my-bucket, or a volume's name",
        )
    if is_bucket and launch.nodes > 1:
        volume = "a SkyPilot volume that all nodes mount (sky volumes apply)"
        raise ConfigError(
            "A bucket cannot hold the run directory of several nodes: "
            "each would write through its own cache.",
            got=f"--storage {given} --nodes {launch.nodes}",
            fix=f"--storage NAME of {volume}, or --nodes 1",
        )
    # Several nodes, or a name in --storage, mean a volume. A comment tells how to create it.
    label = re.sub(r"[^a-z0-9]+", "-", launch.name.lower()).strip("-")[:40].strip("-") or "run"
    default_name = f"wikillm-{label}"
    kept = "runs/, stores/, and the data."
    if not is_bucket:
        name = given or default_name
        mode = "ReadWriteMany" if launch.nodes > 1 else "ReadWriteOnce"
        wanted = f"name: {name}\\ntype: k8s-pvc\\ninfra: kubernetes\\nsize: 500Gi\\n"
        wanted += f"config:\\n  access_mode: {mode}\\n"
        return {"volumes": {mount: name}}, [
            f"The volume {name} is mounted at {mount}: {kept} Create it once, with your size:",
            f"  printf '{wanted}' >volume.yaml && sky volumes apply volume.yaml",
        ]
    bucket = {"source": given} if given else {"name": default_name, "persistent": True}
    which = given or f"{default_name} (created at the first start; --storage s3://NAME: another)"
    mounts = {mount: {**bucket, "mode": "MOUNT_CACHED"}}
    return {"file_mounts": mounts}, [f"The bucket {which} is mounted at {mount}: {kept}"]


def _setup(launch: Launch) -> str:
    """Shell that creates a separate environment, since a cloud image's Python may be too old.

    It installs the checkout, or without one the released version.
    """
    is_checkout = launch.entry == ("train.py",)
    what = "-e . -c constraints.txt" if is_checkout else f"wikillm=={__version__}"
    return (
        "set -e\n"
        "python3 -m pip install -q uv\n"
        f'[ -x "{ENVIRONMENT}/bin/python" ] || python3 -m uv venv --python 3.12 "{ENVIRONMENT}"\n'
        f'DS_BUILD_OPS=0 python3 -m uv pip install --python "{ENVIRONMENT}/bin/python" {what}\n'
    )


def _run(launch: Launch, mount: str) -> str:
    """Shell that links the stores to the storage and starts torchrun."""
    words = launch.resuming_words
    if launch.run_dir is None:
        words = (f"run.dir={mount}/runs/{launch.name}", *words)
    else:  # relative to the working folder, which is not on the storage
        replace(launch, run_dir=posixpath.join("/", launch.run_dir)).check_run_dir()
    stores = shlex.quote(f"{mount}/stores")
    master = f'--master_addr "$master" --master_port {launch.master_port}'
    return (
        'master=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f'export PATH="{ENVIRONMENT}/bin:$PATH"\n'
        f"mkdir -p {shlex.quote(f'{mount}/runs')} {stores}\n"
        f"[ -e stores ] || ln -s {stores} stores\n"
        'exec torchrun --nnodes "$SKYPILOT_NUM_NODES" --node_rank "$SKYPILOT_NODE_RANK" \\\n'
        f"  --nproc_per_node {launch.gpus} {master} \\\n"
        f"  {shlex.join(('-m', 'wikillm', 'train', *words))}\n"
    )
