"""Targets on this machine: `single` (one GPU), `multi` (all GPUs of the node), `torchrun`.

`torchrun` is static, or with `max_restarts` a c10d rendezvous that starts the ranks again after a failure; a restarted
run goes on from its newest checkpoint. Several nodes: the same script on each, with NODE_RANK in the environment.
"""

from __future__ import annotations

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import quoted, script
from wikillm.remote.hosts import bracketed_host

MORE = "Further words go to the run."


def single(launch: Launch) -> Rendering:
    """One process on one GPU, or on the CPU where there is none."""
    return _deepspeed(launch, ("--num_gpus", "1"), "One GPU.")


def multi(launch: Launch) -> Rendering:
    """One process per GPU of this node."""
    count = () if launch.gpus is None else ("--num_gpus", str(launch.gpus))
    about = "All GPUs of this node." if launch.gpus is None else f"{launch.gpus} GPUs of this node."
    return _deepspeed(launch, count, about)


def _deepspeed(launch: Launch, count: tuple[str, ...], about: str) -> Rendering:
    argv = (
        "deepspeed",
        *count,
        "--master_port",
        str(launch.master_port),
        *launch.entry,
        *launch.words,
    )
    text = script(
        [f"{about} {MORE}", f"Written by: {launch.command}"], ["exec " + quoted(argv, tail='"$@"')]
    )
    return Rendering(text, (Step(argv),))


def torchrun(launch: Launch) -> Rendering:
    """torch's own launcher. It turns every exit code into 1: the run's own stands in RUN/exit.json."""
    if launch.nodes > 1 and launch.master_addr is None:
        raise ConfigError(
            "torchrun on several nodes needs the address of the first one.",
            fix="--master-addr HOST, as all nodes see it",
        )
    per_node = "gpu" if launch.gpus is None else str(launch.gpus)
    address = launch.master_addr or "127.0.0.1"
    head: tuple[str, ...] = (
        "torchrun",
        "--nnodes",
        str(launch.nodes),
        "--nproc_per_node",
        per_node,
    )
    if launch.max_restarts:
        meet = (
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            f"{bracketed_host(address)}:{launch.master_port}",
            "--rdzv_id",
            launch.name,
        )
        head += (*meet, "--max_restarts", str(launch.max_restarts))
    else:
        head += ("--master_addr", address, "--master_port", str(launch.master_port))
    tail = (*_module(launch), *launch.words)
    about = f"torchrun, {launch.nodes} node{'s' if launch.nodes > 1 else ''}. {MORE}"
    comments = [about, f"Written by: {launch.command}"]
    if launch.nodes == 1 or launch.max_restarts:
        argv = (*head, *tail)
        return Rendering(script(comments, ["exec " + quoted(argv, tail='"$@"')]), (Step(argv),))
    comments.insert(1, "The same on every node, with NODE_RANK=0, 1, ... in its environment.")
    rank = (
        "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}"
        if launch.node_rank is None
        else str(launch.node_rank)
    )
    line = f'exec {quoted(head)} --node_rank "{rank}" \\\n  {quoted(tail, tail=chr(34) + "$@" + chr(34))}'
    steps = (
        ()
        if launch.node_rank is None
        else (Step((*head, "--node_rank", str(launch.node_rank), *tail)),)
    )
    return Rendering(script(comments, [line]), steps)


def _module(launch: Launch) -> tuple[str, ...]:
    """DeepSpeed says `--module`, torchrun `-m`."""
    return ("-m", *launch.entry[1:]) if launch.entry[0] == "--module" else launch.entry
