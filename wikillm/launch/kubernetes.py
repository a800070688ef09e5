"""Target `k8s`: a manifest, applied with kubectl.

For one node it is a batch/v1 Job, for several nodes a Kubeflow PyTorchJob, whose operator sets
MASTER_ADDR and RANK in each pod. The values of forwarded variables are in a Secret, not in the
manifest. `--go` creates the Secret, and a comment in the manifest has the command for it. Tests
check the manifest against Kubernetes' own schema (of a PyTorchJob, its pods). It was not run on a
cluster.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import to_yaml

_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]{0,254}")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
GIB = 2**30
MEMORY_PER_GPU = 32 * GIB
"""Memory per GPU without offload, for the process, the loaders, the store's pages and /dev/shm."""
SHM_PER_GPU = 2 * GIB
"""Size of /dev/shm per GPU, for batches and NCCL's buffers. Kubernetes' default is 64 MB."""
SECONDS_TO_SAVE = 120
"""Seconds from SIGTERM to the end of a pod. Kubernetes' default is 30."""


def kubernetes(launch: Launch) -> Rendering:
    """A Job or a PyTorchJob. The image contains WikiLLM, the claim data and run directory."""
    if launch.image is None or not _IMAGE.fullmatch(launch.image):
        what = "Kubernetes needs a container image."
        raise ConfigError(what, got=launch.image, fix="--image registry/name:tag")
    launch.require_gpus("Kubernetes")
    launch.require_mount("Kubernetes", "volume")
    launch.check_run_dir()
    name = _label(launch.name)
    claim = launch.storage or name
    if not _CLAIM.fullmatch(claim):
        what = "--storage must be the name of a PersistentVolumeClaim."
        raise ConfigError(what, got=repr(claim), fix="--storage my-claim")
    file = f"{name}.k8s.yaml"
    for_several = "ReadWriteMany, since all nodes write to it"
    mode = for_several if launch.nodes > 1 else "ReadWriteOnce is enough"
    head = [
        f"# Written by: {launch.command}",
        f"# The PersistentVolumeClaim {claim} ({mode}) is mounted at {launch.workdir}: "
        "runs/, stores/, and the data.",
    ]
    steps = [Step(("kubectl", "apply", "-f", file))]
    if launch.variables:
        names = ", ".join(launch.variables)
        head += [
            f"# Variables ({names}) come from a Secret; make it in the shell that has them:",
            f"#   {secret_command(launch, name)}",
        ]
        steps.insert(0, Step(("kubectl", "apply", "-f", "-"), stdin=_secret(launch, name)))
    text = to_yaml(head, _manifest(launch, name, claim))
    return Rendering(text, tuple(steps), file=file)


def _manifest(launch: Launch, name: str, claim: str) -> dict[str, Any]:
    # Every node runs this pod, one node in a Job, several in a PyTorchJob.
    spec = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "containers": [_container(launch, name)],
        "volumes": _volumes(claim, launch.gpus or 1),
    }
    pod = {"spec": spec}
    if launch.nodes == 1:
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {"backoffLimit": 10, "template": pod},
        }
    replicas = {"restartPolicy": "OnFailure", "template": pod}
    specs = {
        "Master": {"replicas": 1, **replicas},
        "Worker": {"replicas": launch.nodes - 1, **replicas},
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": specs},
    }


def secret_command(launch: Launch, name: str) -> str:
    """Shell text that creates the Secret from the shell's variables, none on a command line."""
    names = "|".join(launch.variables)
    create = f"kubectl create secret generic {name}-env --from-env-file=/dev/stdin"
    return (
        f"env | grep -E {shlex.quote(f'^({names})=')} | "
        f"{create} --dry-run=client -o yaml | kubectl apply -f -"
    )


def _secret(launch: Launch, name: str) -> str:
    """The Secret with its values: only for kubectl's standard input."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{name}-env"},
        "type": "Opaque",
        "stringData": dict(launch.variables),
    }
    return yaml.safe_dump(secret)


def _container(launch: Launch, name: str) -> dict[str, Any]:
    gpus = launch.gpus or 1
    head = ["torchrun", f"--nnodes={launch.nodes}", f"--nproc_per_node={gpus}"]
    if launch.nodes > 1:
        # Kubernetes, not a shell, replaces $(X) from the container's environment.
        head += ["--node_rank=$(RANK)", "--master_addr=$(MASTER_ADDR)"]
        head += ["--master_port=$(MASTER_PORT)"]
    words = ("-m", "wikillm", "train", *launch.resuming_words)
    memory = _gibibytes(launch.memory or MEMORY_PER_GPU * gpus)
    # No CPU limit, which would throttle the loaders. The memory limit equals the request.
    container: dict[str, Any] = {
        "name": "pytorch",  # the name that the operator expects
        "image": launch.image,
        "command": [*head, *(word.replace("$(", "$$(") for word in words)],
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
    """The claim, and /dev/shm with a size limit. Without a limit it may fill the node's memory."""
    shm = {"medium": "Memory", "sizeLimit": _gibibytes(SHM_PER_GPU * gpus)}
    return [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "shm", "emptyDir": shm},
    ]


def _gibibytes(size: int) -> str:
    return f"{-(-size // GIB)}Gi"


def _label(name: str) -> str:
    """A DNS label: lower case letters, digits and dashes."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    if not label:
        what = "The run's name has no letter or digit for a name in Kubernetes."
        raise ConfigError(what, got=name, fix="run.name=my-run")
    return label
