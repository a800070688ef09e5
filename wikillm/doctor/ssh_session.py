"""Examines all nodes of a hostfile over ssh, in at most `SECONDS`.

Each node runs `doctor.node` and answers three requests: examine the node, meet the other nodes,
take part in an all-reduce. A node that does not answer is dropped, and the reason is reported.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.doctor import nodes
from wikillm.doctor.checks import Finding, checks_in, fail
from wikillm.doctor.examine import Examination
from wikillm.doctor.needs import Needs
from wikillm.doctor.node import MARK
from wikillm.doctor.probe import in_time
from wikillm.doctor.software import INSTALL
from wikillm.remote.ssh import ssh_argv

SECONDS = 58.0
EXAMINE = 45.0
MEET = 14.0
REDUCE = 22.0
MIN_FOR_REDUCE = 12.0
"""Seconds for each request. The first one includes the login and the start of Python."""
CLUSTER_CHECKS = tuple(check for check in checks_in(nodes) if check is not nodes.REACH)

_OTHER_CODE = "WikiLLM there differs from the one here, or has a fault"
_ONE_COMMIT = "check out one commit on all nodes"
_REASONS = {
    "host key verification failed": (
        "its host key is not the known one",
        "if it was reinstalled: ssh-keygen -R {node}, then ssh {node} once",
    ),
    "permission denied (": ("no login without a password", "ssh-copy-id {node}"),
    "cd: ": ("the checkout is not at the same path", "--workdir FOLDER, the same on all nodes"),
    "python: ": ("WikiLLM does not start there", f"on {{node}}: {INSTALL}"),
    "traceback": (_OTHER_CODE, _ONE_COMMIT),
}
"""For words in an error of ssh, the shell or Python: the cause and the fix."""


def examine_nodes(
    slots: Mapping[str, int], needs: Needs, *, workdir: str, environment: Mapping[str, str]
) -> Examination:
    """Examine all nodes.

    Args:
        slots: processes of each host, in the order of the hostfile.
        workdir: the checkout on the nodes.
        environment: the variables that a run would get there.
    """
    # Send the requests; each one needs the answers to the request before it.
    start = time.monotonic()
    session = Session(slots, workdir, start + SECONDS)
    try:
        answers = session.ask(
            "examine",
            EXAMINE,
            needs=asdict(needs),
            slots=dict(slots),
            token=secrets.token_hex(8),
            environment=dict(environment),
        )
        values = {name: answer["facts"] for name, answer in answers.items()}
        cluster = nodes.Cluster(slots, values)
        if len(answers) > 1:
            _meet(session, cluster, answers)
            cluster.all_reduce = _reduce(session, cluster, answers)
    finally:
        session.close()
    # Collect the findings: on the answers, on the nodes together, and those of each node.
    findings = [nodes.REACH(session.lost.get(name), name) for name in slots]
    if len(slots) > 1:
        findings += [check(cluster) for check in CLUSTER_CHECKS]
    for answer in answers.values():
        findings += [Finding(**finding) for finding in answer["findings"]]
    return Examination(tuple(slots), tuple(findings), time.monotonic() - start)


def _meet(session: Session, cluster: nodes.Cluster, answers: dict[str, Any]) -> None:
    """Every node looks for the files of all others and connects to them."""
    addresses = cluster.addresses()
    write_errors = {name: answer["write_error"] for name, answer in answers.items()}
    results = session.ask(
        "meet",
        MEET,
        written=[name for name, error in write_errors.items() if not error],
        peers={name: (address, answers[name]["ports"]) for name, address in addresses.items()},
    )
    for name, found in results.items():
        cluster.shared[name] = write_errors[name] or found["missing"]
        for peer, error in found["errors"].items():
            cluster.connections[name, peer] = error


def _reduce(session: Session, cluster: nodes.Cluster, answers: dict[str, Any]) -> float | str:
    """Bytes per second of an all-reduce of all nodes that answer, or why it was not measured."""
    names = [name for name in answers if name not in session.lost]
    addresses = cluster.addresses()
    if any(cluster.connections.values()) or len(names) < 2 or not set(names) <= set(addresses):
        return "not measured: the nodes do not all reach each other"
    if session.remaining < MIN_FOR_REDUCE:
        return "not measured: the time was used up"
    first = names[0]
    port = answers[first]["free_port"]
    results = session.ask("reduce", REDUCE, names=names, address=addresses[first], port=port)
    errors = {name: session.lost[name].found for name in names if name in session.lost}
    errors |= {name: result["error"] for name, result in results.items() if "error" in result}
    if errors:
        return "; ".join(f"{name}: {error}" for name, error in errors.items())
    return float(results[first]["bytes_per_second"])


class Session:
    """An ssh connection to each node. Nodes that did not answer are in `lost`, with the reason.

    `deadline` is a value of time.monotonic(). Raises MachineError if this machine has no ssh.
    """

    def __init__(self, names: Iterable[str], workdir: str, deadline: float) -> None:
        self.deadline = deadline
        self.lost: dict[str, Finding] = {}
        self._open: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in names:
                self._open[name] = subprocess.Popen(
                    ssh_argv(name, node_command(workdir, name)),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
        except FileNotFoundError:
            fix = "apt-get install openssh-client"
            raise MachineError("ssh is not on this machine.", fix=fix) from None

    @property
    def remaining(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    def ask(self, command: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Send a request to all nodes at once. Returns the answers that come within `seconds`."""
        limit = min(seconds, self.remaining)
        line = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
        asks = {name: partial(_ask, process, line) for name, process in self._open.items()}
        answers = in_time(asks, limit)
        for name in asks:
            answer = answers.get(name, {"late": f"no answer to {command!r} within {limit:.0f} s"})
            if "value" not in answer:
                self.lost[name] = why_no_value(answer, name)
                self._open.pop(name).kill()
        return {name: answers[name]["value"] for name in self._open}

    def close(self) -> None:
        """Close the standard input of the nodes' processes, which ends them, or kill ssh."""
        with ThreadPoolExecutor(max(1, len(self._open))) as pool:
            list(pool.map(_end, self._open.values()))


def _ask(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """The answer, with a key `value` or `error`, or `text` if ssh ended. May wait forever."""
    assert process.stdin and process.stdout, "opened as pipes"
    with suppress(OSError):  # ssh has ended; its output says why
        process.stdin.write(request)
        process.stdin.flush()
    lines = []
    for line in process.stdout:
        with suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and MARK in answer:
                return answer
        lines.append(line.decode(errors="replace"))  # a banner of the shell, or an error
    return {"text": "".join(lines)}


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.communicate(timeout=2)  # closes its input
    except subprocess.TimeoutExpired:
        process.kill()


def node_command(workdir: str, name: str) -> str:
    """Shell text for a node, as in `wikillm launch hostfile`."""
    folder = shlex.quote(workdir)
    start = f"exec python -m wikillm.doctor.node {shlex.quote(name)}"
    return f'cd {folder} && PATH="$PWD/.venv/bin:$PATH" && {start}'


def why_no_value(answer: dict[str, Any], node: str) -> Finding:
    """The finding on a node whose answer to `Session.ask` has no value."""
    if "late" in answer:
        why = "the node does not answer"
        fix = f"check that the machine runs and that its name is right: ssh {node}"
        return fail(answer["late"], why, fix)
    if "error" in answer:
        return fail(answer["error"], _OTHER_CODE, _ONE_COMMIT)
    # ssh, the shell or Python ended with an error before the node could answer.
    text: str = answer["text"]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words, (why, fix) in _REASONS.items():
        found = [line for line in lines if words in line.lower()]
        if found:
            # The last line of a traceback is the error.
            line = lines[-1] if words == "traceback" else found[0]
            return fail(line, why, fix.format(node=node))
    last = lines[-1] if lines else "ssh ended without a message"
    return fail(last, "the node was not checked", f"ssh {node}")
