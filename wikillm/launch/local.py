"""Targets on this machine: `single` (one GPU), `multi` (all GPUs of the node), `torchrun`.

`torchrun` uses a static rendezvous, or with `max_restarts` a c10d rendezvous, which restarts the
ranks after a failure; they resume from the newest checkpoint. On several nodes the same script runs
on each node, with NODE_RANK in the environment.
"""

from __future__ import annotations

from dataclasses import replace

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch, Rendering, Step
from wikillm.launch.script import quoted, script
from wikillm.remote.hosts import bracketed_host

_MORE_WORDS = '"$@"'


def single(launch: Launch) -> Rendering:
    """One process on one GPU, or on the CPU of a machine without a GPU."""
    return _exec(replace(launch, gpus=1).deepspeed_argv(), _comments(launch, "One GPU."))


def multi(launch: Launch) -> Rendering:
    """One process per GPU of this node."""
    which = "All GPUs" if launch.gpus is None else f"{launch.gpus} GPUs"
    return _exec(launch.deepspeed_argv(), _comments(launch, f"{which} of this node."))


def _comments(launch: Launch, about: str) -> list[str]:
    return [f"{about} Further arguments go to the run.", f"Written by: {launch.command}"]


def _exec(argv: tuple[str, ...], comments: list[str]) -> Rendering:
    text = script(comments, ["exec " + quoted(argv, tail=_MORE_WORDS)])
    return Rendering(text, (Step(argv),))


def torchrun(launch: Launch) -> Rendering:
    """torch's own launcher. It turns every error code into 1; RUN/exit.json has the run's code."""
    if launch.nodes > 1 and launch.master_addr is None:
        raise ConfigError(
            "torchrun on several nodes needs the address of the first node.",
            fix="--master-addr HOST, a name or address that all nodes reach",
        )
    per_node = "gpu" if launch.gpus is None else str(launch.gpus)
    address = launch.master_addr or "127.0.0.1"
    port = str(launch.master_port)
    head: tuple[str, ...] = ("torchrun", "--nnodes", str(launch.nodes))
    head += ("--nproc_per_node", per_node)
    if launch.max_restarts:
        endpoint = f"{bracketed_host(address)}:{port}"
        head += ("--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint, "--rdzv_id", launch.name)
        head += ("--max_restarts", str(launch.max_restarts))
    else:
        head += ("--master_addr", address, "--master_port", port)
    tail = (*launch.python_entry, *launch.words)
    nodes = "1 node" if launch.nodes == 1 else f"{launch.nodes} nodes"
    comments = _comments(launch, f"torchrun, {nodes}.")
    if launch.nodes == 1 or launch.max_restarts:
        return _exec((*head, *tail), comments)
    # In a static launch on several nodes, each node needs its own rank.
    comments.insert(1, "The same on every node, with NODE_RANK=0, 1, ... in its environment.")
    rank = "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}"
    steps: tuple[Step, ...] = ()
    if launch.node_rank is not None:
        rank = str(launch.node_rank)
        steps = (Step((*head, "--node_rank", rank, *tail)),)
    ranked = f'exec {quoted(head)} --node_rank "{rank}" \\\n'
    return Rendering(script(comments, [f"{ranked}  {quoted(tail, tail=_MORE_WORDS)}"]), steps)
