"""Checks whether the names, network cards and ports of this node lead to the other nodes.

`supervise.network.find_route` finds the same route here as in a run.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from wikillm.core.errors import MachineError
from wikillm.core.files import read_small
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.needs import Needs
from wikillm.supervise.network import Route, find_route, is_loopback, why_port_is_taken

SLOW_LINK = 10_000
SLOWER = "several nodes are then slower than one"
FASTER = "choose a faster card with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
MASTER_FIX = "--master-addr with an address that every node reaches"
DRIVER = Path("/dev/nvidiactl")
INFINIBAND = Path("/sys/class/infiniband")


def card_addresses() -> dict[str, list[str]]:
    """The addresses of each card that is up, including loopback."""
    families = (socket.AF_INET, socket.AF_INET6)
    stats = psutil.net_if_stats()
    return {
        name: [each.address.partition("%")[0] for each in found if each.family in families]
        for name, found in sorted(psutil.net_if_addrs().items())
        if name in stats and stats[name].isup
    }


def route_of(needs: Needs) -> Route | None:
    """The route to the host of rank 0; None without a route, or if it does not leave this node."""
    with suppress(MachineError):
        route = find_route(needs.master)
        return None if is_loopback(route.master) else route
    return None


def outer_card(needs: Needs) -> str | None:
    """The card that leads to the other nodes, or None.

    Without a route, because the master's name is wrong here, it is the only card with addresses.
    """
    cards = {name: found for name, found in card_addresses().items() if found and name != "lo"}
    if route := route_of(needs):
        cards = {name: found for name, found in cards.items() if route.address in found}
    return next(iter(cards)) if len(cards) == 1 else None


def infiniband_states() -> list[str]:
    """States of the ports of InfiniBand and RoCE cards, such as ACTIVE."""
    return [read_small(port / "state").rpartition(" ")[2] for port in INFINIBAND.glob("*/ports/*")]


@check("network")
def master_name(needs: Needs) -> Finding:
    """The name of rank 0's host leads to it, through a fast card that gloo uses too."""
    if needs.nodes == 1:
        return skip("one node")
    try:
        route = find_route(needs.master)
    except MachineError as error:
        return fail(error.what.rstrip("."), "ranks on this node cannot join", error.fix or "")
    if is_loopback(route.master):
        why = "this node would connect to itself"
        return fail(f"{needs.master} is {route.master}", why, MASTER_FIX)
    card = outer_card(needs)
    own_name = socket.gethostname()
    is_chosen = needs.chooses_card or "GLOO_SOCKET_IFNAME" in os.environ
    if not is_chosen and is_loopback(_address_of(own_name)):
        why = "gloo gives other nodes this address: the start hangs"
        fix = f"export GLOO_SOCKET_IFNAME={card or 'CARD'}, or correct /etc/hosts"
        return fail(f"{own_name} is {_address_of(own_name)}", why, fix)
    found = f"{needs.master} is {route.master}, from {route.address} through {card or 'no card'}"
    speed = psutil.net_if_stats()[card].speed if card else 0  # Mbit/s; 0 for virtual cards
    if 0 < speed < SLOW_LINK and "ACTIVE" not in infiniband_states():
        return warn(f"{found}: {speed} Mbit/s", SLOWER, FASTER)
    return ok(found)


def _address_of(name: str) -> str:
    """The address that gloo finds for this machine's own name; 127.0.0.1 if there is none."""
    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        return "127.0.0.1"


@check("network")
def card_named(needs: Needs) -> Finding:
    """NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name cards that this node has."""
    # Without a GPU nothing uses NCCL.
    variables = ["GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if DRIVER.exists() else [])]
    chosen = {name: os.environ[name] for name in variables if os.environ.get(name)}
    names = sorted(psutil.net_if_addrs())
    wrong = [name for name, value in chosen.items() if not names_a_card(name, value, names)]
    if wrong:
        found = ", ".join(f"{name}={chosen[name]}" for name in wrong)
        fix = f"export {wrong[0]}={outer_card(needs) or names[-1]}"
        return fail(found, f"this node has {', '.join(names)}", fix)
    usable = [name for name, addresses in card_addresses().items() if addresses and name != "lo"]
    is_open = needs.nodes > 1 and DRIVER.exists() and not chosen and len(usable) > 1
    if is_open and (outer := outer_card(needs)):
        found = f"{len(usable)} cards ({', '.join(usable[:6])}), none chosen"
        why = "NCCL may choose a card that the other nodes cannot reach"
        return warn(found, why, f"export NCCL_SOCKET_IFNAME={outer}")
    return ok(", ".join(f"{name}={value}" for name, value in chosen.items()) or "not set")


def names_a_card(variable: str, value: str, names: list[str]) -> bool:
    """Whether `value` selects one of the cards `names`.

    For gloo it is a list of names, for NCCL a list of prefixes, of names after `=`, or of prefixes
    to exclude after `^`.
    """
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
