"""Target `k8s`: a manifest for a cluster's own tools.

On one node a batch/v1 Job, on several a Kubeflow PyTorchJob (its operator sets MASTER_ADDR and RANK per pod). Forwarded
variables come from a Secret, so that no value stands in the manifest: `--go` makes it, and the manifest says the command. Held
against Kubernetes' own schema (of a PyTorchJob, its pods). Not run on a cluster.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import Any

import yaml

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step

_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]{0,254}")
GIB = 2**30
MEMORY_PER_GPU = 32 * GIB
"""Of a pod without offload: the process, the loaders, pages of the store, and what stands in /dev/shm."""
SHM_PER_GPU = 2 * GIB
"""NCCL's buffers between GPUs without peer access, and the loaders' batches, want more than a container's 64 MB."""
SECONDS_TO_SAVE = 120
"""Between SIGTERM and the end of a pod; Kubernetes would give 30 s."""


def kubernetes(launch: Launch) -> Rendering:
    """A Job or a PyTorchJob; the image must hold WikiLLM, and a volume claim the data and the run directory."""
    if launch.image is None or not _IMAGE.fullmatch(launch.image):
        raise ConfigError(
            "Kubernetes needs a container image.",
            got=repr(launch.image),
            fix="--image registry/name:tag",
        )
    if launch.gpus is None:
        raise ConfigError("Kubernetes needs the number of GPUs of a node.", fix="--gpus-per-node 8")
    if not launch.workdir.startswith("/"):
        raise ConfigError(
            "Kubernetes mounts the volume at an absolute path.",
            got=repr(launch.workdir),
            fix="--workdir /wikillm",
        )
    refuse_lost_run_dir(launch)
    name = _kubernetes_name(launch.name)
    claim = name if launch.storage is None else _claim(launch.storage)
    spec = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "containers": [_container(launch, name)],
        "volumes": _volumes(claim, launch.gpus),
    }
    pod: dict[str, Any] = {"spec": spec}
    if launch.nodes == 1:
        manifest: dict[str, Any] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
        }
        manifest["spec"] = {"backoffLimit": 10, "template": pod}
    else:
        workers = {"replicas": launch.nodes - 1, "restartPolicy": "OnFailure", "template": pod}
        master = {"replicas": 1, "restartPolicy": "OnFailure", "template": pod}
        manifest = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": name},
        }
        manifest["spec"] = {"pytorchReplicaSpecs": {"Master": master, "Worker": workers}}
    file = f"{name}.k8s.yaml"
    mode = (
        "ReadWriteMany, since all nodes write to it"
        if launch.nodes > 1
        else "ReadWriteOnce will do"
    )
    head = [
        f"# Written by: {launch.command}",
        f"# The PersistentVolumeClaim {claim} ({mode}) is mounted at {launch.workdir}: runs/, stores/, and the data.",
    ]
    steps = [Step(("kubectl", "apply", "-f", file))]
    if launch.variables:
        head.append(
            f"# Variables ({', '.join(launch.variables)}) come from a Secret; make it in the shell that has them:"
        )
        head.append(f"#   {secret_command(launch, name)}")
        steps.insert(0, Step(("kubectl", "apply", "-f", "-"), stdin=_secret(launch, name)))
    return Rendering(to_yaml(head, manifest), tuple(steps), file=file)


def secret_command(launch: Launch, name: str) -> str:
    """Shell that makes or replaces the Secret out of the variables of the shell it runs in; no value is a word of it."""
    names = "|".join(launch.variables)
    create = f"kubectl create secret generic {name}-env --from-env-file=/dev/stdin --dry-run=client -o yaml"
    return f"env | grep -E {shlex.quote(f'^({names})=')} | {create} | kubectl apply -f -"


def _secret(launch: Launch, name: str) -> str:
    """For kubectl's standard input alone: it has the values."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{name}-env"},
        "type": "Opaque",
    }
    return yaml.safe_dump({**secret, "stringData": dict(launch.variables)})


def _container(launch: Launch, name: str) -> dict[str, Any]:
    gpus = launch.gpus or 1
    head = ["torchrun", f"--nnodes={launch.nodes}", f"--nproc_per_node={gpus}"]
    if (
        launch.nodes > 1
    ):  # $(X) is filled in by Kubernetes from the container's environment, not by a shell
        head += [
            "--node_rank=$(RANK)",
            "--master_addr=$(MASTER_ADDR)",
            "--master_port=$(MASTER_PORT)",
        ]
    words = [word.replace("$(", "$$(") for word in ("-m", "wikillm", "train", *resuming(launch))]
    memory = _gibibytes(launch.memory or MEMORY_PER_GPU * gpus)
    # No limit of cores: it would throttle the loaders. A limit of memory equals the request: what is asked for is there.
    container: dict[str, Any] = {
        "name": "pytorch",  # the name that the operator looks for
        "image": launch.image,
        "command": [*head, *words],
        "resources": {
            "requests": {"cpu": str(launch.cpus * gpus), "memory": memory, "nvidia.com/gpu": gpus},
            "limits": {"memory": memory, "nvidia.com/gpu": gpus},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": launch.workdir},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        "workingDir": launch.workdir,
    }
    if launch.variables:
        container["envFrom"] = [{"secretRef": {"name": f"{name}-env"}}]
    return container


def _volumes(claim: str, gpus: int) -> list[dict[str, Any]]:
    """The claim, and /dev/shm with a size: it counts as memory of the container, and without one may fill the node's."""
    shm = {"medium": "Memory", "sizeLimit": _gibibytes(SHM_PER_GPU * gpus)}
    return [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "shm", "emptyDir": shm},
    ]


def _gibibytes(size: int) -> str:
    return f"{-(-size // GIB)}Gi"


def _claim(name: str) -> str:
    if re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name):
        return name
    raise ConfigError(
        "--storage is the name of a PersistentVolumeClaim.",
        got=repr(name),
        fix="--storage my-claim",
    )


def refuse_lost_run_dir(launch: Launch) -> None:
    """A run directory on a disk that goes with its machine leaves --resume auto nothing. Raises ConfigError."""
    mount = launch.workdir.rstrip("/")
    placed = posixpath.normpath(posixpath.join(mount, launch.run_dir or "runs"))
    if not placed.startswith(f"{mount}/"):
        raise ConfigError(
            "The run directory is not on the storage: after a restart --resume auto would find nothing.",
            got=f"run.dir={launch.run_dir}; the storage is mounted at {mount}",
            fix=f"run.dir={mount}/runs/{launch.name}, or leave run.dir out",
        )


def resuming(launch: Launch) -> tuple[str, ...]:
    """What restarts a failed pod or a preempted machine starts the same command."""
    return launch.words if "--resume" in launch.words else ("--resume", "auto", *launch.words)


def _kubernetes_name(name: str) -> str:
    """A DNS label: lower case letters, digits and dashes."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    if not label:
        raise ConfigError(
            "The run's name gives no name for Kubernetes.", got=name, fix="run.name=my-run"
        )
    return label


class _Plain(yaml.SafeDumper):
    """Without anchors, and with text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None
    )


_Plain.add_representer(str, _text)


def to_yaml(head: list[str], value: dict[str, Any]) -> str:
    body = yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(head) + "\n" + body
