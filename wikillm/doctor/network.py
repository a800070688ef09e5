"""Do names, cards and ports of this node lead to the other nodes?

The route is the one that a run finds, by `supervise.network.find_route`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from wikillm.core.errors import MachineError
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import read
from wikillm.supervise.network import Route, find_route, is_loopback, why_port_is_taken

SLOW_LINK = 10_000
SLOWER = "several nodes are then slower than one"
FASTER = "choose a faster card with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
MASTER_FIX = "--master-addr with an address that every node reaches"
DRIVER = Path("/dev/nvidiactl")
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """`speed` in Mbit/s, None for virtual cards."""

    name: str
    is_up: bool
    mtu: int
    speed: int | None
    addresses: tuple[str, ...]


def network_cards() -> tuple[NetworkCard, ...]:
    addresses = psutil.net_if_addrs()
    return tuple(
        NetworkCard(
            name=name,
            is_up=card.isup,
            mtu=card.mtu,
            speed=card.speed or None,
            addresses=tuple(
                found.address.partition("%")[0]
                for found in addresses.get(name, [])
                if found.family in (socket.AF_INET, socket.AF_INET6)
            ),
        )
        for name, card in sorted(psutil.net_if_stats().items())
    )


def route_of(needs: Needs) -> Route | None:
    """The route to the host of rank 0; None if there is none, or it does not leave this node."""
    with suppress(MachineError):
        route = find_route(needs.master)
        return None if is_loopback(route.master) else route
    return None


def outer_card(needs: Needs) -> NetworkCard | None:
    """The card that leads to the other nodes.

    Without a route, because the master's name is wrong here, it is the only card with addresses.
    """
    cards = [card for card in network_cards() if card.name != "lo"]
    if route := route_of(needs):
        cards = [card for card in cards if route.address in card.addresses]
    usable = [card for card in cards if card.is_up and card.addresses]
    return usable[0] if len(usable) == 1 else None


def resolve(name: str) -> tuple[str, ...]:
    """Addresses of a name, IPv4 first; empty if the name is unknown here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


def infiniband_states() -> list[str]:
    """States of the ports of InfiniBand and RoCE cards, such as ACTIVE."""
    return [read(port / "state").rpartition(" ")[2] for port in INFINIBAND.glob("*/ports/*")]


@check("network")
def hostname(needs: Needs) -> Finding:
    """The node's own name leads to an address that other nodes reach."""
    name = socket.gethostname()
    addresses = resolve(name)
    found = f"{name} is {', '.join(addresses) or 'unknown'}"
    if needs.nodes == 1:
        if addresses:
            return ok(found)
        why = "some tools look it up at every start"
        return warn(found, why, f"add to /etc/hosts: 127.0.1.1 {name}")
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return ok(f"{found}; GLOO_SOCKET_IFNAME names the card")
    route = route_of(needs)
    if needs.chooses_card and route is not None and route.interface is not None:
        return ok(f"{found}; the run sets GLOO_SOCKET_IFNAME={route.interface}")
    card = outer_card(needs)
    name_of_card = card.name if card else "CARD"
    fix = f"export GLOO_SOCKET_IFNAME={name_of_card}, or put the node's address into /etc/hosts"
    if not addresses:
        return fail(found, "gloo looks its own name up to find its card", fix)
    if is_loopback(addresses[0]):
        return fail(found, "gloo gives other nodes this address: the start hangs", fix)
    return ok(found)


@check("network")
def master_name(needs: Needs) -> Finding:
    """The name of the host of rank 0 can be resolved on this node."""
    if needs.nodes == 1:
        return skip("one node")
    try:
        route = find_route(needs.master)
    except MachineError as error:
        return fail(error.what.rstrip("."), "ranks on this node cannot join", error.fix or "")
    found = f"{needs.master} is {route.master}"
    if is_loopback(route.master):
        return fail(found, "ranks here would wait for this node", MASTER_FIX)
    return ok(found)


@check("network")
def card(needs: Needs) -> Finding:
    """The card that leads to the other nodes is up and fast."""
    if needs.nodes == 1:
        return skip("one node")
    outer = outer_card(needs)
    if outer is None:
        why = "the nodes do not reach each other"
        return fail(f"no route to {needs.master}", why, "ip route get ADDRESS")
    found = f"{outer.name}, {', '.join(outer.addresses)}"
    is_slow = outer.speed is not None and outer.speed < SLOW_LINK
    if is_slow and "ACTIVE" not in infiniband_states():
        return warn(f"{found}: {outer.speed} Mbit/s", SLOWER, FASTER)
    return ok(found)


@check("network")
def card_named(needs: Needs) -> Finding:
    """NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name cards that this node has."""
    # Without a GPU nothing uses NCCL.
    variables = ["GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if DRIVER.exists() else [])]
    chosen = {name: os.environ[name] for name in variables if os.environ.get(name)}
    cards = network_cards()
    names = [card.name for card in cards]
    wrong = [name for name, value in chosen.items() if not names_a_card(name, value, names)]
    if wrong:
        found = ", ".join(f"{name}={chosen[name]}" for name in wrong)
        outer = outer_card(needs)
        fix = f"export {wrong[0]}={outer.name if outer else names[-1]}"
        return fail(found, f"this node has {', '.join(names)}", fix)
    if chosen:
        return ok(", ".join(f"{name}={value}" for name, value in chosen.items()))
    usable = [card.name for card in cards if card.is_up and not _is_only_loopback(card)]
    outer = outer_card(needs) if needs.nodes > 1 and len(usable) > 1 else None
    if outer:
        found = f"{len(usable)} cards ({', '.join(usable[:6])}), none chosen"
        why = "NCCL and gloo may take one that the other nodes do not reach"
        fix = f"export NCCL_SOCKET_IFNAME={outer.name} GLOO_SOCKET_IFNAME={outer.name}"
        return warn(found, why, fix)
    return ok("not set; one card") if usable else skip("no card but loopback")


def _is_only_loopback(card: NetworkCard) -> bool:
    return all(is_loopback(address) for address in card.addresses)


def names_a_card(variable: str, value: str, names: list[str]) -> bool:
    """Whether `value` selects a card. NCCL: prefixes, `=` exact, `^` all others; gloo: exact."""
    if variable.startswith("GLOO"):
        return all(word in names for word in value.split(","))
    if value.startswith("^"):
        excluded = tuple(value.removeprefix("^").removeprefix("=").split(","))
        return any(not name.startswith(excluded) for name in names)
    if value.startswith("="):
        return any(word.partition(":")[0] in names for word in value[1:].split(","))
    prefixes = tuple(word.partition(":")[0] for word in value.split(","))
    return any(name.startswith(prefixes) for name in names)


@check("network")
def master_port(needs: Needs) -> Finding:
    """The rendezvous port is free."""
    if error := why_port_is_taken(needs.master_port):
        found = f"port {needs.master_port}: {error}"
        why = "on the first node the run cannot start there"
        return warn(found, why, f"--master-port {needs.master_port + 1}")
    return ok(str(needs.master_port))
