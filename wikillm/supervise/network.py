"""Finds this node's address and interface towards the first node; opens the coordinator's socket.

By default gloo uses the interface that the hostname resolves to. On many installations that is
loopback, and gloo then waits forever. So WikiLLM sets GLOO_SOCKET_IFNAME, unless the user has, to
the interface that routes to MASTER_ADDR (on the first node, to the one with this address), and logs
it. NCCL chooses among InfiniBand and Ethernet by itself.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from wikillm.core.errors import MachineError

PORTS_TRIED = 8  # also the number of names of the local socket


@dataclass(frozen=True, slots=True)
class Route:
    """The route from this node to the first node.

    Attributes:
        interface: None if `address` belongs to no IPv4 interface (IPv6, a forwarded address).
        address: this node's own address on the route.
        master: the resolved address of the first node.
    """

    interface: str | None
    address: str
    master: str


def interfaces() -> dict[str, str]:
    """The interfaces of this machine by IPv4 address."""
    import psutil  # not at the top: agents import this file and have to stay small

    cards = psutil.net_if_addrs().items()
    return {a.address: card for card, found in cards for a in found if a.family == socket.AF_INET}


def is_loopback(address: str) -> bool:
    """Whether it is in 127.0.0.0/8 or is ::1; False for text that is not an address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def own_address(address: str) -> str:
    """This machine's source address for packets to `address`. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # only asks the routing table
        return str(probe.getsockname()[0])


def find_route(master: str) -> Route:
    """The route from this node to `master`.

    Raises MachineError if the name is unknown, is a loopback address, or cannot be reached.
    """
    host = socket.gethostname()
    # A batch file of Slurm takes the first node's name from Slurm and has no --master-addr.
    hint = ""
    if "SLURM_JOB_ID" not in os.environ:
        hint = "--master-addr with an address that every node reaches; or "
    try:
        *_, sockaddr = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
        raise MachineError(
            f"{host} cannot resolve the name of the first node, {master}.",
            got=str(error),
            fix=f"{hint}add the name to DNS or /etc/hosts on every node",
        ) from None
    resolved = str(sockaddr[0])
    here = interfaces()
    # A literal localhost means that all ranks are on this machine.
    if is_loopback(resolved) and not (master == "localhost" or is_loopback(master)):
        outer_cards = [
            f"{name} {found}" for found, name in here.items() if not found.startswith("127.")
        ]
        raise MachineError(
            f"{master} is {resolved} on {host}: other nodes cannot connect to it.",
            got=f"interfaces of {host}: {', '.join(outer_cards) or 'only loopback'}",
            fix=f"{hint}correct the line of {master} in /etc/hosts of {host}",
        )
    try:
        address = own_address(resolved)
    except OSError as error:
        raise MachineError(
            f"{host} has no route to the first node, {master} ({resolved}).",
            got=str(error.strerror),
        ) from None
    return Route(here.get(address), address, resolved)


def set_interface(route: Route) -> str:
    """Set gloo's interface unless the user has set it. Returns the interface in use."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and route.interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = route.interface
    return os.environ.get("GLOO_SOCKET_IFNAME", route.interface or "unnamed")


def why_port_is_taken(port: int) -> str:
    """Why a server cannot listen on all addresses of `port` now; "" if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def check_master_port(port: int, environ: Mapping[str, str] = os.environ) -> None:
    """Raise MachineError unless `port` is free. (rank 0, before the process group)"""
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return  # torchrun listens there itself
    if why := why_port_is_taken(port):
        raise MachineError(
            f"Port {port} of {socket.gethostname()}, the rendezvous port, is in use.",
            got=why,
            fix="choose a free port: --master-port PORT",
        )


def listen(master_port: int, master: str, address: str) -> socket.socket:
    """The coordinator's socket, at the first free port above `master_port` on one address.

    Args:
        master: the address of the first node, as this node resolves it.
        address: this node's own address on the route. It is tried if `master` is not an address of
            this machine, because a service forwards it.

    Raises MachineError when no port is free.
    """
    tried = [port for port in range(master_port + 1, master_port + 1 + PORTS_TRIED) if port < 65536]
    why = f"MASTER_PORT={master_port}"
    for port in tried:
        for name in dict.fromkeys((master, address)):
            try:
                return _bound(name, port)
            except OSError as error:
                why = f"tried {tried[0]} to {tried[-1]} of {name}: {error.strerror}"
                if error.errno != errno.EADDRNOTAVAIL:
                    break
    raise MachineError(
        f"No port is free for the supervisor on {socket.gethostname()}.",
        got=why,
        fix="choose a free port: --master-port PORT",
    )


def listen_here(job: str) -> socket.socket:
    """The coordinator's socket if all ranks are local. It uses no port. Raises MachineError."""
    for number in range(PORTS_TRIED):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(_local_name(job, number))
            sock.listen(1024)
            return sock
        except OSError as error:
            sock.close()
            why = str(error.strerror)
    raise MachineError("No name is free for the supervisor's socket on this machine.", got=why)


def connect_here(job: str, number: int) -> socket.socket:
    """Connect to the local coordinator at its `number`-th name. Raises OSError without one."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(_local_name(job, number))
        if not is_of_this_user(sock):
            raise PermissionError("another user listens there")
    except OSError:
        sock.close()
        raise
    return sock


def is_of_this_user(sock: socket.socket) -> bool:
    """Whether the kernel says that the peer of a Unix socket is a process of this user."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())


def _local_name(job: str, number: int) -> str:
    """A name in Linux's abstract socket namespace: no file, removed with its owner."""
    return f"\0wikillm-{os.getuid()}-{hashlib.sha256(job.encode()).hexdigest()[:32]}-{number}"


def _bound(address: str, port: int) -> socket.socket:
    family, _, _, _, sockaddr = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(sockaddr)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock
