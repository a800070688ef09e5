"""Targets `k8s` and `sky`: manifests for a cluster's own tools, rendered from the same description.

`k8s` on one node is a batch/v1 Job, on several a Kubeflow PyTorchJob (its operator sets MASTER_ADDR and RANK per pod).
Forwarded variables come from a Secret, so that no value stands in the manifest. Both are held against a schema: Kubernetes' own for
a Job and for a PyTorchJob's pods, SkyPilot's parser (0.14.1) for its task. Neither was run on a cluster.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step

_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]{0,254}")
_KIND = re.compile(r"[A-Za-z0-9][\w.-]{0,62}")


def kubernetes(launch: Launch) -> Rendering:
    """A Job or a PyTorchJob; the image must hold WikiLLM, and the volume claim NAME the data and the run directory."""
    if launch.image is None or not _IMAGE.fullmatch(launch.image):
        raise ConfigError(
            "Kubernetes needs a container image.", got=repr(launch.image), fix="--image registry/name:tag"
        )
    if launch.gpus is None:
        raise ConfigError("Kubernetes needs the number of GPUs of a node.", fix="--gpus-per-node 8")
    name = _kubernetes_name(launch.name)
    pod = {"spec": {"restartPolicy": "OnFailure", "containers": [_container(launch, name)], "volumes": _volumes(name)}}
    if launch.nodes == 1:
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
        manifest["spec"] = {"backoffLimit": 10, "template": pod}
    else:
        workers = {"replicas": launch.nodes - 1, "restartPolicy": "OnFailure", "template": pod}
        master = {"replicas": 1, "restartPolicy": "OnFailure", "template": pod}
        manifest = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}}
        manifest["spec"] = {"pytorchReplicaSpecs": {"Master": master, "Worker": workers}}
    file = f"{name}.k8s.yaml"
    head = [f"# Written by: {launch.command}", f"# The claim {name} holds data and run directory."]
    if launch.variables:
        secret = f"kubectl create secret generic {name}-env --from-env-file=.deepspeed_env"
        head.append(f"# Variables ({', '.join(launch.variables)}) come from a Secret: {secret}")
    return Rendering(_yaml(head, manifest), (Step(("kubectl", "apply", "-f", file)),), file=file)


def sky(launch: Launch) -> Rendering:
    """A SkyPilot task: the checkout is its workdir, torchrun starts the ranks of a node."""
    if launch.gpu_kind is None or not _KIND.fullmatch(launch.gpu_kind):
        raise ConfigError(
            "SkyPilot needs a kind of GPU.", got=repr(launch.gpu_kind), fix="--gpu H100 --gpus-per-node 8"
        )
    if launch.gpus is None:
        raise ConfigError("SkyPilot needs the number of GPUs of a node.", fix="--gpus-per-node 8")
    words = _resuming(launch)
    run = (
        'master=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        '. .venv/bin/activate\nexec torchrun --nnodes "$SKYPILOT_NUM_NODES" --node_rank "$SKYPILOT_NODE_RANK" \\\n'
        f'  --nproc_per_node {launch.gpus} --master_addr "$master" --master_port {launch.master_port} \\\n'
        f"  {shlex.join(('train.py', *words))}\n"
    )
    task = {
        "name": launch.name,
        "resources": {"accelerators": f"{launch.gpu_kind}:{launch.gpus}"},
        "num_nodes": launch.nodes,
        "workdir": ".",
        "setup": "make env\n",
        "run": run,
    }
    head = [f"# Written by: {launch.command}"]
    more = tuple(word for name in launch.variables for word in ("--env", name))  # by name: sky reads the value itself
    file = f"{launch.name}.sky.yaml"
    return Rendering(_yaml(head, task), (Step(("sky", "launch", *more, file)),), file=file)


def _container(launch: Launch, name: str) -> dict[str, Any]:
    head = ["torchrun", f"--nnodes={launch.nodes}", f"--nproc_per_node={launch.gpus}"]
    if launch.nodes > 1:  # $(X) is filled in by Kubernetes from the container's environment, not by a shell
        head += ["--node_rank=$(RANK)", "--master_addr=$(MASTER_ADDR)", "--master_port=$(MASTER_PORT)"]
    words = [word.replace("$(", "$$(") for word in ("-m", "wikillm", "train", *_resuming(launch))]
    container: dict[str, Any] = {
        "name": "pytorch",  # the name that the operator looks for
        "image": launch.image,
        "command": [*head, *words],
        "resources": {"limits": {"nvidia.com/gpu": launch.gpus}},
        "volumeMounts": [{"name": "data", "mountPath": launch.workdir}, {"name": "shm", "mountPath": "/dev/shm"}],
        "workingDir": launch.workdir,
    }
    if launch.variables:
        container["envFrom"] = [{"secretRef": {"name": f"{name}-env"}}]
    return container


def _volumes(name: str) -> list[dict[str, Any]]:
    """NCCL and the loaders want more shared memory than a container's 64 MB."""
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": name}}
    return [claim, {"name": "shm", "emptyDir": {"medium": "Memory"}}]


def _resuming(launch: Launch) -> tuple[str, ...]:
    """What restarts a failed pod or a preempted machine starts the same command."""
    return launch.words if "--resume" in launch.words else ("--resume", "auto", *launch.words)


def _kubernetes_name(name: str) -> str:
    """A DNS label: lower case letters, digits and dashes."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    if not label:
        raise ConfigError("The run's name gives no name for Kubernetes.", got=name, fix="run.name=my-run")
    return label


class _Plain(yaml.SafeDumper):
    """Without anchors, and with text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text)


def _yaml(head: list[str], value: dict[str, Any]) -> str:
    body = yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(head) + "\n" + body
