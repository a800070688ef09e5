"""Which address and interface of this node reach the first node, and how the hub is found there.

gloo takes the interface that the hostname resolves to, which is loopback on many installations, and then waits for ever.
Here the interface is the one that routes to MASTER_ADDR (on the first node: the one that has that address); it is named
in the log, and set as GLOO_SOCKET_IFNAME where nothing else is. NCCL chooses among InfiniBand and Ethernet by itself, and
is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from wikillm.core.errors import MachineError

PORTS_TRIED = 8
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True)
class Nic:
    """`interface` is None where the address belongs to none that has a name (IPv6, or an address of somebody else)."""

    interface: str | None
    address: str
    master: str  # the resolved address of the first node


def interfaces() -> dict[str, str]:
    """IPv4 address -> interface of this machine."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                packed = fcntl.ioctl(
                    probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15])
                )
                found[socket.inet_ntoa(packed[20:24])] = name
    return found


def _by_address() -> str:
    """The way out that a batch file of Slurm does not have: it takes the first node's name from Slurm."""
    return (
        ""
        if "SLURM_JOB_ID" in os.environ
        else "--master-addr ADDRESS, as every node reaches it; or "
    )


def choose_nic(master: str) -> Nic:
    """The way from this node to `master`. Raises MachineError where the name means nothing, or this machine itself."""
    host = socket.gethostname()
    try:
        family, *_, where = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    except OSError as error:
        raise MachineError(
            f"{host} does not know the first node, {master}.",
            got=str(error),
            fix=f"{_by_address()}add the name to DNS or /etc/hosts on every node",
        ) from None
    resolved = str(where[0])
    here = interfaces()
    if ipaddress.ip_address(resolved).is_loopback and not _means_loopback(master):
        others = [
            f"{name} {address}" for address, name in here.items() if not address.startswith("127.")
        ]
        raise MachineError(
            f"{master} is {resolved} on {host}: the nodes cannot meet there.",
            got=f"interfaces of {host}: {', '.join(others) or 'none but loopback'}",
            fix=f"{_by_address()}mend the line of {master} in /etc/hosts of {host}",
        )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(where)  # sends nothing: it asks the routing table
            address = str(probe.getsockname()[0])
        except OSError as error:
            raise MachineError(
                f"{host} has no way to the first node, {master} ({resolved}).",
                got=str(error.strerror),
            ) from None
    return Nic(here.get(address), address, resolved)


def _means_loopback(master: str) -> bool:
    """Said literally: all ranks are meant to be on this machine."""
    if master == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(master).is_loopback
    return False


def set_interface(nic: Nic) -> str:
    """Tell gloo its interface unless the user has; returns the name that counts, for the log."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and nic.interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = nic.interface
    return os.environ.get("GLOO_SOCKET_IFNAME", nic.interface or "unnamed")


def check_master_port(port: int, environ: Mapping[str, str] = os.environ) -> None:
    """Rank 0, before the process group: nobody else has the port. Raises MachineError with this node's name."""
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return  # torchrun listens there itself
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise MachineError(
                f"Port {port} of {socket.gethostname()}, where the ranks meet, is taken.",
                got=str(error.strerror),
                fix="--master-port PORT",
            ) from None


def listen(master_port: int, master: str, address: str) -> socket.socket:
    """The hub's socket: the first free port behind the ranks' own, on one address, where the agents look for it.

    Args:
        master: the address of the first node, as this node resolves it.
        address: this node's own on the way there, for a `master` that is not its own (a forwarded address of a service).

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
        fix="--master-port PORT",
    )


def listen_here(job: str) -> socket.socket:
    """The hub's socket where all ranks are on this machine: no port is taken. Raises MachineError when no name is free."""
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
    """To the hub of this machine with the `number`-th name. Raises OSError where it is not, or is another user's."""
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
    """Who is at the other end of a Unix socket, by the kernel's word."""
    _, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return bool(uid == os.getuid())


def _local_name(job: str, number: int) -> str:
    """In Linux's abstract namespace: no file, gone with its owner."""
    return f"\0wikillm-{os.getuid()}-{hashlib.sha256(job.encode()).hexdigest()[:32]}-{number}"


def _bound(address: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock
