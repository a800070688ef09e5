"""Do names, cards and ports of this node lead to the other nodes?"""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import ClusterFacts, NetworkCard, NetworkFacts, NodeFacts
from wikillm.doctor.needs import Needs, Request
from wikillm.doctor.probe import read
from wikillm.supervise.network import is_loopback, own_address, why_port_is_taken

SLOW_LINK = 10_000
SLOWER = "several nodes are then slower than one"
FASTER = "choose a faster card with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
MASTER_FIX = "--master-addr with an address that every node reaches"
IFNAME = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def gather_network(request: Request, *, resolve_names: bool = True) -> NetworkFacts:
    """Without `resolve_names` no DNS query is sent: a broken server takes seconds to answer."""
    hostname = socket.gethostname()
    cards = network_cards()
    master = request.master or hostname
    found = resolve(master) if resolve_names else ()
    return NetworkFacts(
        hostname=hostname,
        hostname_addresses=resolve(hostname) if resolve_names else (),
        cards=cards,
        master=master,
        master_addresses=found,
        route=route_to(found[0], cards) if found else None,
        master_port=request.master_port,
        port_error=why_port_is_taken(request.master_port),
        infiniband=infiniband_ports(),
    )


def resolve(name: str) -> tuple[str, ...]:
    """Addresses of a name, IPv4 first; empty if the name is unknown here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in ordered))


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


def route_to(address: str, cards: tuple[NetworkCard, ...]) -> tuple[str, str] | None:
    """(card, own address) of packets to `address`; None without a route."""
    try:
        own = own_address(address)
    except OSError:
        return None
    return next(((card.name, own) for card in cards if own in card.addresses), ("?", own))


def infiniband_ports(root: Path = Path("/sys/class/infiniband")) -> tuple[tuple[str, str], ...]:
    """Ports of InfiniBand and RoCE cards: ("mlx5_0:1", "ACTIVE")."""
    ports = sorted(root.glob("*/ports/*"))
    return tuple(
        (f"{port.parents[1].name}:{port.name}", read(port / "state").rpartition(" ")[2])
        for port in ports
    )


def addresses_of(cluster: ClusterFacts) -> dict[str, str]:
    """Node name -> the address that the other nodes reach this node by.

    A node's address is the source address of its packets to the master. The address of the
    master is the one that most nodes resolve the master's name to.
    """
    routes = {name: facts.network.route for name, facts in cluster.facts.items() if facts.network}
    found = {name: route[1] for name, route in routes.items() if route}
    found = {name: address for name, address in found.items() if not is_loopback(address)}
    master = next((name for name in cluster.names if name in cluster.facts), None)
    resolved = cluster.by_value("network.master_address")
    outer = [address for address in resolved if not is_loopback(address)]
    if master is not None and outer:
        found[master] = max(outer, key=lambda address: len(resolved[address]))
    return found


@check("network", "network")
def hostname(facts: NodeFacts, needs: Needs) -> Verdict:
    """The node's own name leads to an address that other nodes reach."""
    net = facts.network
    found = f"{net.hostname} is {', '.join(net.hostname_addresses) or 'unknown'}"
    if needs.nodes == 1:
        if net.hostname_addresses:
            return ok(found)
        why = "some tools look it up at every start"
        return warn(found, why, f"add to /etc/hosts: 127.0.1.1 {net.hostname}")
    if "GLOO_SOCKET_IFNAME" in (facts.environment or {}):
        return ok(f"{found}; GLOO_SOCKET_IFNAME names the card")
    card = net.outer_card.name if net.outer_card else "CARD"
    fix = f"export GLOO_SOCKET_IFNAME={card}, or put the node's address into /etc/hosts"
    if not net.hostname_addresses:
        return fail(found, "gloo looks its own name up to find its card", fix)
    if is_loopback(net.hostname_addresses[0]):
        return fail(found, "gloo gives other nodes this address: the start hangs", fix)
    return ok(found)


@check("network", "network")
def master_name(facts: NodeFacts, needs: Needs) -> Verdict:
    """The name of the host of rank 0 can be resolved on this node."""
    if needs.nodes == 1:
        return skip("one node")
    net = facts.network
    found = f"{net.master} is {', '.join(net.master_addresses) or 'unknown'}"
    if not net.master_addresses:
        return fail(found, "ranks on this node cannot join", MASTER_FIX)
    if is_loopback(net.master_addresses[0]):
        return fail(found, "ranks here would wait for this node", MASTER_FIX)
    return ok(found)


@check("network", "network")
def card(facts: NodeFacts, needs: Needs) -> Verdict:
    """The card that leads to the other nodes is up and fast."""
    net = facts.network
    if needs.nodes == 1:
        return skip("one node")
    outer = net.outer_card
    if outer is None:
        why = "the nodes do not reach each other"
        return fail(f"no route to {net.master}", why, "ip route get ADDRESS")
    found = f"{outer.name}, {', '.join(outer.addresses)}"
    has_fabric = any(state == "ACTIVE" for _, state in net.infiniband)
    if outer.speed is not None and outer.speed < SLOW_LINK and not has_fabric:
        return warn(f"{found}: {outer.speed} Mbit/s", SLOWER, FASTER)
    return ok(found)


@check("network", "network")
def card_named(facts: NodeFacts, needs: Needs) -> Verdict:
    """NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name cards that this node has."""
    env = facts.environment or {}
    net = facts.network
    chosen = {name: env[name] for name in IFNAME if env.get(name)}
    names = [card.name for card in net.cards]
    if not chosen:
        usable = [
            card.name
            for card in net.cards
            if card.is_up and not all(is_loopback(address) for address in card.addresses)
        ]
        if needs.nodes > 1 and len(usable) > 1 and net.outer_card:
            found = f"{len(usable)} cards ({', '.join(usable[:6])}), none chosen"
            why = "NCCL and gloo may take one that the other nodes do not reach"
            card = net.outer_card.name
            return warn(found, why, f"export NCCL_SOCKET_IFNAME={card} GLOO_SOCKET_IFNAME={card}")
        return ok("not set; one card") if usable else skip("no card but loopback")
    wrong = [name for name, value in chosen.items() if not names_a_card(name, value, names)]
    if wrong:
        found = ", ".join(f"{name}={chosen[name]}" for name in wrong)
        card = net.outer_card.name if net.outer_card else names[-1]
        return fail(found, f"this node has {', '.join(names)}", f"export {wrong[0]}={card}")
    return ok(", ".join(f"{name}={value}" for name, value in chosen.items()))


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


@check("network", "network")
def master_port(facts: NodeFacts, needs: Needs) -> Verdict:
    """The rendezvous port is free."""
    net = facts.network
    if net.port_error:
        found = f"port {net.master_port}: {net.port_error}"
        why = "on the first node the run cannot start there"
        return warn(found, why, f"--master-port {net.master_port + 1}")
    return ok(str(net.master_port))
