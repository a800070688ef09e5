"""Target `sky`: a SkyPilot task. The folder is its workdir; data, stores and run directory lie on a storage that stays.

A machine that was preempted is gone with its disk, so the run directory is on the storage, and the task says `--resume auto`.
On one machine the storage is a bucket, written through a cache on the disk; on several, which must all see one run directory at
once, a SkyPilot volume. Variables that hold secrets are declared as such. Read by SkyPilot's own parser (0.14.1), its shell
part run; not run on a cloud.
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
from wikillm.launch.manifests import refuse_lost_run_dir, resuming, to_yaml

_KIND = re.compile(r"[A-Za-z0-9][\w.-]{0,62}")
_URL = re.compile(r"(s3|gs|r2|cos|oci|nebius|https|vastdata|cw)://[\w./:@-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,50}[a-z0-9]")
ENVIRONMENT = "$HOME/wikillm-env"


def sky(launch: Launch) -> Rendering:
    """torchrun starts the ranks of a node. Raises ConfigError for a description that lacks something."""
    if launch.gpu_kind is None or not _KIND.fullmatch(launch.gpu_kind):
        raise ConfigError(
            "SkyPilot needs a kind of GPU.",
            got=repr(launch.gpu_kind),
            fix="--gpu H100 --gpus-per-node 8",
        )
    if launch.gpus is None:
        raise ConfigError("SkyPilot needs the number of GPUs of a node.", fix="--gpus-per-node 8")
    mount = launch.workdir
    if not mount.startswith("/") or not mount.strip("/"):
        raise ConfigError(
            "SkyPilot mounts the storage at an absolute path.",
            got=repr(mount),
            fix="--workdir /wikillm",
        )
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
    # By name: sky reads the values itself, from the shell it is called in.
    flags = [word for name in plain for word in ("--env", name)] + [
        word for name in secrets for word in ("--secret", name)
    ]
    typed = shlex.join(("sky", "jobs", "launch", *flags, file))
    head = [
        f"# Written by: {launch.command}",
        *(f"# {line}" for line in about),
        f"# Started again by SkyPilot after a preemption: {typed}",
    ]
    return Rendering(to_yaml(head, task), (Step(("sky", "launch", *flags, file)),), file=file)


def _storage(launch: Launch, mount: str) -> tuple[dict[str, Any], list[str]]:
    """(file_mounts or volumes, what to say about them)."""
    given = launch.storage
    is_bucket = _URL.fullmatch(given) is not None if given else launch.nodes == 1
    if given and not is_bucket and not _NAME.fullmatch(given):
        raise ConfigError(
            "--storage is a bucket or a SkyPilot volume.",
            got=repr(given),
            fix="--storage s3://my-bucket, or a volume's name",
        )
    if is_bucket and launch.nodes > 1:
        raise ConfigError(
            "A bucket cannot hold the run directory of several nodes: each would write through a cache of its own.",
            got=f"--storage {given} --nodes {launch.nodes}",
            fix="--storage NAME of a SkyPilot volume that all nodes mount (sky volumes apply), or --nodes 1",
        )
    own = re.sub(r"[^a-z0-9]+", "-", launch.name.lower()).strip("-")[:40].strip("-") or "run"
    if not is_bucket:
        name = given or f"wikillm-{own}"
        mode = "ReadWriteMany" if launch.nodes > 1 else "ReadWriteOnce"
        wanted = f"name: {name}\\ntype: k8s-pvc\\ninfra: kubernetes\\nsize: 500Gi\\nconfig:\\n  access_mode: {mode}\\n"
        return {"volumes": {mount: name}}, [
            f"The volume {name} is mounted at {mount}: runs/, stores/, and the data. Made once, of a size that suits, by:",
            f"  printf '{wanted}' >volume.yaml && sky volumes apply volume.yaml",
        ]
    bucket: dict[str, Any] = (
        {"source": given} if given else {"name": f"wikillm-{own}", "persistent": True}
    )
    said = given or f"wikillm-{own} (made at the first start; --storage s3://NAME takes another)"
    return {"file_mounts": {mount: {**bucket, "mode": "MOUNT_CACHED"}}}, [
        f"The bucket {said} is mounted at {mount}: runs/, stores/, and the data."
    ]


def _setup(launch: Launch) -> str:
    """An environment of its own, since a cloud image's Python may be too old. In a checkout the code that is there."""
    is_checkout = launch.entry == ("train.py",)
    what = "-e . -c constraints.txt" if is_checkout else f"wikillm=={__version__}"
    return (
        "set -e\n"
        "python3 -m pip install -q uv\n"
        f'[ -x "{ENVIRONMENT}/bin/python" ] || python3 -m uv venv --python 3.12 "{ENVIRONMENT}"\n'
        f'DS_BUILD_OPS=0 python3 -m uv pip install --python "{ENVIRONMENT}/bin/python" {what}\n'
    )


def _run(launch: Launch, mount: str) -> str:
    words = resuming(launch)
    if launch.run_dir is None:
        words = (f"run.dir={mount}/runs/{launch.name}", *words)
    else:
        refuse_lost_run_dir(
            replace(launch, run_dir=posixpath.join("/", launch.run_dir))
        )  # the working folder is not on it
    stores = shlex.quote(f"{mount}/stores")
    return (
        'master=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f'export PATH="{ENVIRONMENT}/bin:$PATH"\n'
        f"mkdir -p {shlex.quote(f'{mount}/runs')} {stores}\n"
        f"[ -e stores ] || ln -s {stores} stores\n"
        'exec torchrun --nnodes "$SKYPILOT_NUM_NODES" --node_rank "$SKYPILOT_NODE_RANK" \\\n'
        f'  --nproc_per_node {launch.gpus} --master_addr "$master" --master_port {launch.master_port} \\\n'
        f"  {shlex.join(('-m', 'wikillm', 'train', *words))}\n"
    )
