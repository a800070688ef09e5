"""Names, cards, ports and firewalls of a node, and the hubs it may ask."""

from __future__ import annotations

import fnmatch
import ipaddress

from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Check, Verdict, check, fail, ok, skip, warn

SLOW_LINK = 10_000
BAD_PACKETS = 0.001
IFNAME = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def is_loopback(address: str) -> bool:
    """127.0.0.0/8 and ::1."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


@check("network", "network")
def hostname(facts: NodeFacts, needs: Needs) -> Verdict:
    """The node's own name leads to an address that other nodes reach."""
    net = facts.network
    found = f"{net.hostname} is {', '.join(net.hostname_addresses) or 'unknown'}"
    chosen = "GLOO_SOCKET_IFNAME" in (facts.environment or {})
    if needs.nodes == 1:
        return (
            ok(found)
            if net.hostname_addresses
            else warn(
                found,
                "some tools look it up at every start",
                f"127.0.1.1 {net.hostname} in /etc/hosts",
            )
        )
    if chosen:
        return ok(f"{found}; GLOO_SOCKET_IFNAME names the card")
    fix = f"export GLOO_SOCKET_IFNAME={net.outer_card.name if net.outer_card else 'CARD'}, or the node's address in /etc/hosts"
    if not net.hostname_addresses:
        return fail(found, "gloo looks its own name up to find its card", fix)
    if any(is_loopback(address) for address in net.hostname_addresses[:1]):
        return fail(
            found,
            "gloo would give the other nodes this address, and the run hangs at the start",
            fix,
        )
    return ok(found)


@check("network", "network")
def master_name(facts: NodeFacts, needs: Needs) -> Verdict:
    """The name that the ranks meet at is known on this node."""
    if needs.nodes == 1:
        return skip("one node")
    net = facts.network
    found = f"{net.master} is {', '.join(net.master_addresses) or 'unknown'}"
    if not net.master_addresses:
        return fail(
            found,
            "ranks on this node cannot join",
            "--master-addr ADDRESS, or a line in /etc/hosts",
        )
    if is_loopback(net.master_addresses[0]):
        return fail(
            found,
            "here that is this node itself: its ranks would wait for each other for ever",
            "--master-addr ADDRESS, as the other nodes see it",
        )
    return ok(found)


@check("network", "network")
def card(facts: NodeFacts, needs: Needs) -> Verdict:
    """The card that leads to the other nodes is known and up."""
    if needs.nodes == 1:
        return skip("one node")
    net = facts.network
    card = net.outer_card
    if card is None:
        return fail(
            f"no route to {net.master}", "the nodes do not reach each other", "ip route get ADDRESS"
        )
    return ok(f"{card.name}, {', '.join(card.addresses)}")


@check("network", "network")
def card_named(facts: NodeFacts, needs: Needs) -> Verdict:
    """NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name cards that this node has."""
    env, net = facts.environment or {}, facts.network
    said = {name: env[name] for name in IFNAME if env.get(name)}
    if not said:
        candidates = [
            nic.name
            for nic in net.nics
            if nic.is_up and any(not is_loopback(a) for a in nic.addresses)
        ]
        if needs.nodes > 1 and len(candidates) > 1 and net.outer_card:
            return warn(
                f"{len(candidates)} cards ({', '.join(candidates[:6])}), none chosen",
                "NCCL and gloo may take one that the other nodes do not reach",
                f"export NCCL_SOCKET_IFNAME={net.outer_card.name} GLOO_SOCKET_IFNAME={net.outer_card.name}",
            )
        return ok("not set; one card") if candidates else skip("no card but loopback")
    names = [nic.name for nic in net.nics]
    wrong = [
        f"{name}={value}" for name, value in said.items() if not names_a_card(name, value, names)
    ]
    if wrong:
        return fail(
            ", ".join(wrong),
            f"this node has {', '.join(names)}",
            f"export {wrong[0].split('=')[0]}={net.outer_card.name if net.outer_card else names[-1]}",
        )
    return ok(", ".join(f"{name}={value}" for name, value in said.items()))


def names_a_card(variable: str, value: str, names: list[str]) -> bool:
    """NCCL takes a list of prefixes, `=` for exact names and `^` for all others; gloo a list of exact names."""
    if variable.startswith("GLOO"):
        return all(word in names for word in value.split(","))
    if value.startswith("^"):
        left_out = value.removeprefix("^").removeprefix("=").split(",")
        return any(not name.startswith(tuple(left_out)) for name in names)
    if value.startswith("="):
        return any(word.partition(":")[0] in names for word in value[1:].split(","))
    return any(
        name.startswith(word.partition(":")[0]) for word in value.split(",") for name in names
    )


@check("network", "network")
def link_speed(facts: NodeFacts, needs: Needs) -> Verdict:
    """The card between the nodes is fast enough for gradients."""
    nic = facts.network.outer_card
    if needs.nodes == 1 or nic is None or nic.speed is None:
        return skip(
            "one node"
            if needs.nodes == 1
            else "the card does not tell its speed; `all-reduce` measures it"
        )
    found = f"{nic.name}: {nic.speed} Mbit/s"
    if nic.speed < SLOW_LINK and not any(
        state == "ACTIVE" for _, state in facts.network.infiniband
    ):
        return warn(
            found, "several nodes are then slower than one", "a faster card: NCCL_SOCKET_IFNAME"
        )
    return ok(found)


@check("network", "network")
def link_errors(facts: NodeFacts, needs: Needs) -> Verdict:
    """The card loses no packets."""
    bad = [
        f"{nic.name}: {nic.bad_share:.2%}"
        for nic in facts.network.nics
        if nic.bad_share > BAD_PACKETS
    ]
    if bad:
        return warn(
            f"received packets lost or broken: {', '.join(bad)}",
            "each loss stalls a collective",
            "cable, switch port, ring buffer (ethtool -S)",
        )
    return ok("none lost")


@check("network", "network")
def infiniband(facts: NodeFacts, needs: Needs) -> Verdict:
    """InfiniBand and RoCE ports are active."""
    ports = facts.network.infiniband
    if not ports:
        return skip("none")
    down = [name for name, state in ports if state != "ACTIVE"]
    if len(down) == len(ports):
        return warn(
            f"no port is active: {', '.join(down)}",
            "NCCL falls back to TCP",
            "ibstat; ask who runs the fabric",
        )
    if down:
        return warn(
            f"not active: {', '.join(down)}",
            "fewer cards carry the traffic",
            "ibstat, or leave them out: NCCL_IB_HCA",
        )
    return ok(f"{len(ports)} ports")


@check("network", "network")
def master_port(facts: NodeFacts, needs: Needs) -> Verdict:
    """The port that the ranks meet at is free."""
    net = facts.network
    if not net.port_error:
        return ok(str(net.master_port))
    return warn(
        f"port {net.master_port}: {net.port_error}",
        "on the first node the run cannot start there",
        f"--master-port {net.master_port + 1}",
    )


@check("network", "network")
def firewall(facts: NodeFacts, needs: Needs) -> Verdict:
    """No firewall stands between the nodes."""
    active = facts.network.firewalls
    if not active or needs.nodes == 1:
        return ok("none seen") if not active else skip(f"one node; {', '.join(active)}")
    return warn(
        ", ".join(active),
        "NCCL and gloo use ports of their choice: all between the nodes must be open",
        "ufw allow from ADDRESS/24, or firewall-cmd --zone=trusted --add-source=ADDRESS/24",
    )


@check("environment", "environment")
def proxies(facts: NodeFacts, needs: Needs) -> Verdict:
    """A proxy is not asked for addresses of the nodes themselves."""
    env = facts.environment
    set_here = [name for name in PROXIES if env.get(name)]
    if not set_here:
        return skip("no proxy")
    spared = [
        word.strip()
        for word in (env.get("no_proxy") or env.get("NO_PROXY") or "").split(",")
        if word.strip()
    ]
    wanted = ["127.0.0.1", *([needs.master] if needs.nodes > 1 and needs.master else [])]
    missing = [name for name in wanted if not any(_covers(word, name) for word in spared)]
    if missing:
        return warn(
            f"{', '.join(set_here)} set, no_proxy without {', '.join(missing)}",
            "local services are asked through the proxy",
            f"export no_proxy={','.join([*spared, *missing])}",
        )
    return ok("no_proxy names the nodes")


def _covers(word: str, name: str) -> bool:
    if word == "*" or fnmatch.fnmatch(name, word) or name.endswith("." + word.lstrip(".")):
        return True
    try:
        return ipaddress.ip_address(name) in ipaddress.ip_network(word, strict=False)
    except ValueError:
        return name == "127.0.0.1" and word == "localhost"


def _hub(name: str, about: str, why: str, fix: str) -> Check:
    def judge(facts: NodeFacts, needs: Needs) -> Verdict:
        hubs = facts.hubs or {}
        if name not in hubs:
            return skip("not asked: this run is offline")
        return warn(hubs[name], why, fix) if hubs[name] else ok("answers")

    return Check(f"reach-{name}", "hubs", about, "hubs", judge)


HUGGINGFACE = _hub(
    "huggingface",
    "Hugging Face answers.",
    "tokenizers and models come from files here, or from another hub",
    "HF_ENDPOINT=https://hf-mirror.com, or data.tokenizer=FOLDER",
)
MIRROR = _hub(
    "hf-mirror",
    "The mirror of Hugging Face (HF_ENDPOINT) answers.",
    "not needed where files are local",
    "data.tokenizer=FOLDER, data.path=FILE",
)
MODELSCOPE = _hub(
    "modelscope",
    "ModelScope answers.",
    "not needed where files are local",
    "data.tokenizer=FOLDER, data.path=FILE",
)
SWANLAB = _hub(
    "swanlab",
    "SwanLab answers.",
    "tracking stays offline",
    "observe.swanlab.mode=offline, and `swanlab sync` later",
)
