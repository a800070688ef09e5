"""Names, cards, routes and ports as this node sees them."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct
from pathlib import Path

from wikillm.doctor.facts import Network, Nic
from wikillm.doctor.gather.command import ask, number, read
from wikillm.doctor.needs import Request

_SIOCGIFADDR = 0x8915
CARDS = Path("/sys/class/net")


def gather_network(request: Request, *, ask_tools: bool = True) -> Network:
    hostname = socket.gethostname()
    nics = tuple(
        look_at_card(folder.name) for folder in sorted(CARDS.iterdir()) if (folder / "mtu").exists()
    )
    master = request.master or hostname
    addresses = resolve(master) if ask_tools else ()  # a broken name server takes seconds to say no
    return Network(
        hostname=hostname,
        hostname_addresses=resolve(hostname) if ask_tools else (),
        nics=nics,
        master=master,
        master_addresses=addresses,
        route=route_to(addresses[0], nics) if addresses else None,
        master_port=request.master_port,
        port_error=why_port_is_busy(request.master_port),
        infiniband=infiniband(),
        firewalls=firewalls() if ask_tools else (),
    )


def resolve(name: str) -> tuple[str, ...]:
    """Addresses of a name, IPv4 first; empty when it is not known here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


def look_at_card(name: str) -> Nic:
    folder = CARDS / name
    received, bad = (
        sum(number(read(folder / "statistics" / counter)) or 0 for counter in counters)
        for counters in (("rx_packets",), ("rx_errors", "rx_dropped", "rx_crc_errors"))
    )
    speed = number(read(folder / "speed"))
    return Nic(
        name=name,
        is_up=bool(int(read(folder / "flags") or "0", 16) & 1),
        mtu=number(read(folder / "mtu")) or 0,
        speed=speed if speed is not None and speed > 0 else None,
        addresses=(*_ipv4(name), *_ipv6(name)),
        bad_share=bad / received if received > 10_000 else 0.0,
    )


def _ipv4(name: str) -> tuple[str, ...]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = array.array("B", struct.pack("256s", name.encode()[:15]))
        try:
            fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ()
    return (socket.inet_ntoa(request.tobytes()[20:24]),)


def _ipv6(name: str) -> tuple[str, ...]:
    lines = (line.split() for line in read("/proc/net/if_inet6").splitlines())
    return tuple(
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0]))
        for line in lines
        if line[-1] == name
    )


def route_to(address: str, nics: tuple[Nic, ...]) -> tuple[str, str] | None:
    """(card, own address) of packets to `address`; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        own = str(probe.getsockname()[0])
    return next(((nic.name, own) for nic in nics if own in nic.addresses), ("?", own))


def why_port_is_busy(port: int) -> str:
    """ "" when a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def infiniband(root: Path = Path("/sys/class/infiniband")) -> tuple[tuple[str, str], ...]:
    """Ports of InfiniBand and RoCE cards: ("mlx5_0:1", "ACTIVE")."""
    ports = sorted(root.glob("*/ports/*")) if root.is_dir() else []
    return tuple(
        (f"{port.parents[1].name}:{port.name}", read(port / "state").rpartition(" ")[2])
        for port in ports
    )


def firewalls() -> tuple[str, ...]:
    """Firewalls that are on, and a default policy that drops what comes in, as far as we may look."""
    found = [
        name
        for name in ("firewalld", "ufw")
        if ask("systemctl", "is-active", name, timeout=3).text.strip() == "active"
    ]
    for tool in ("iptables", "nft"):
        words = ("-S", "INPUT") if tool == "iptables" else ("list", "ruleset")
        text = ask(tool, *words, timeout=3).text
        if re.search(r"-P INPUT (DROP|REJECT)|hook input [^}]*policy drop", text):
            found.append(f"{tool}: incoming packets are dropped by default")
    return tuple(found)
