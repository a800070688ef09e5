"""Checks across nodes, on recorded facts: values that must be equal, and connectivity."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from harness.machine_facts import CARD, ETH, LO, broken, gpu_node, needs

from wikillm.doctor.facts import Bandwidth, ClusterFacts, NodeFacts, NodeFailure, facts_from_json
from wikillm.doctor.network import addresses_of
from wikillm.doctor.questions import CLUSTER_CHECKS, judge_cluster
from wikillm.doctor.ssh_connection import agent_command, classify

BY_NAME = {check.name: check for check in CLUSTER_CHECKS}


def sound(**second: dict[str, Any]) -> ClusterFacts:
    """gpu1 and gpu2, the second with other facts."""
    two = gpu_node(
        host={"hostname": "gpu2", "identity": "other net"},
        network={
            "hostname": "gpu2",
            "hostname_addresses": ("10.0.0.2",),
            "cards": (LO, replace(ETH, addresses=("10.0.0.2",))),
            "route": ("eth0", "10.0.0.2"),
        },
    )
    return ClusterFacts(
        names=("gpu1", "gpu2"),
        slots={"gpu1": 2, "gpu2": 2},
        master="gpu1",
        facts={"gpu1": gpu_node(), "gpu2": broken(two, **second)},
        shared={"gpu1": (), "gpu2": ()},
        connections={("gpu1", "gpu2"): "", ("gpu2", "gpu1"): ""},
        all_reduce=Bandwidth(2e9, 2),
    )


# check -> (level, words that are found, other facts of gpu2, other facts of both)
Case = tuple[str, str, dict[str, Any], dict[str, Any]]
OLD_TORCH = {"packages": {"torch": "2.12.0", "deepspeed": "0.19.8"}}
BLOCKED = {("gpu2", "gpu1"): "port 29500: no answer"}
FAULTS: dict[str, list[Case]] = {
    "versions-equal": [("fail", "torch 2.13.0: gpu1; 2.12.0: gpu2", {"software": OLD_TORCH}, {})],
    "python-equal": [("fail", "3.12.4: gpu2", {"software": {"python": "3.12.4"}}, {})],
    "code-equal": [("fail", "ffff: gpu2", {"software": {"code_digest": "ffff"}}, {})],
    "folder-equal": [("warn", "/opt/x: gpu2", {"software": {"code_folder": "/opt/x"}}, {})],
    "data-equal": [("fail", "bb22: gpu2", {"disk": {"data": {"corpus.jsonl": "bb22"}}}, {})],
    "user-equal": [("warn", "eve: gpu2", {"host": {"user": "eve"}}, {})],
    "gpus-equal": [
        ("fail", "A100: gpu2", {"gpus": {"cards": (replace(CARD, name="A100"),)}}, {}),
        ("fail", "no GPU: gpu2", {"gpus": {"cards": ()}}, {}),
    ],
    "mtu-equal": [("fail", "1500: gpu2", {"network": {"cards": (LO, replace(ETH, mtu=1500))}}, {})],
    "slots-equal": [("fail", "gpu2 slots=8", {}, {"slots": {"gpu1": 2, "gpu2": 8}})],
    "distinct-machines": [
        ("fail", "gpu1 and gpu2 are one", {"host": {"identity": "boot net"}}, {})
    ],
    "shared-folder": [
        ("fail", "gpu2 does not see", {}, {"shared": {"gpu1": (), "gpu2": ("gpu1",)}}),
        ("fail", "gpu2: denied", {}, {"shared": {"gpu1": (), "gpu2": "denied"}}),
    ],
    "master-equal": [("fail", "10.9.9.9", {"network": {"master_addresses": ("10.9.9.9",)}}, {})],
    "connections": [("fail", "gpu2 -> gpu1: port 29500", {}, {"connections": BLOCKED})],
    "all-reduce": [
        ("warn", "47.7 MiB/s", {}, {"all_reduce": Bandwidth(5e7, 2)}),
        ("fail", "gpu2: timed out", {}, {"all_reduce": "gpu2: timed out"}),
        ("skip", "do not reach", {}, {"all_reduce": "not measured: nodes do not reach"}),
    ],
}


def test_there_is_a_fault_for_every_check() -> None:
    assert set(FAULTS) == set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_sound_nodes_pass(name: str) -> None:
    assert BY_NAME[name].judge(sound(), needs()).level == "ok"


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in FAULTS.items() for case in cases]
)
def test_a_fault_names_the_node(name: str, case: Case) -> None:
    level, words, second, both = case
    said = BY_NAME[name].judge(replace(sound(**second), **both), needs())
    assert (said.level, words in said.found) == (level, True), said


def test_an_unreachable_node_is_one_failure_that_names_it() -> None:
    cluster = sound()
    alone = replace(
        cluster,
        facts={"gpu1": cluster.facts["gpu1"]},
        unreachable={"gpu2": NodeFailure("timeout", "Connection timed out")},
        shared={},
        connections={},
        all_reduce="not measured",
    )
    failed = [verdict for verdict in judge_cluster(alone, needs()) if verdict.level == "fail"]
    assert [(verdict.name, verdict.node) for verdict in failed] == [("reach", "gpu2")]
    assert "ssh gpu2" in failed[0].fix


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ssh: Could not resolve hostname gpu9: Name or service not known", "other"),
        ("ada@gpu2: Permission denied (publickey,password).", "key"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "changed-key",
        ),
        ("bash: line 1: cd: /srv/wikillm: No such file or directory", "folder"),
        ("/usr/bin/python: No module named wikillm", "python"),
        ("bash: line 1: exec: python: not found", "python"),
        ("", "other"),
    ],
)
def test_ssh_errors_are_classified(text: str, kind: str) -> None:
    assert classify(text, 255).kind == kind


def test_a_working_folder_is_quoted() -> None:
    assert agent_command("/srv/a b; rm -rf x").startswith("cd '/srv/a b; rm -rf x' && ")


def test_addresses_are_those_that_other_nodes_use() -> None:
    """The master may resolve its own name to 127.0.1.1: then the others' answer counts."""
    cluster = sound()
    one = broken(
        cluster.facts["gpu1"],
        network={"master_addresses": ("127.0.1.1",), "route": ("lo", "127.0.1.1")},
    )
    wrong = replace(cluster, facts={**cluster.facts, "gpu1": one})
    assert addresses_of(cluster) == addresses_of(wrong) == {"gpu1": "10.0.0.1", "gpu2": "10.0.0.2"}


def test_facts_survive_json() -> None:
    facts = gpu_node()
    assert facts_from_json(json.loads(json.dumps(asdict(facts)))) == facts
    partly = replace(facts, gpus=None, errors={"gpus": "no answer"})
    assert facts_from_json(json.loads(json.dumps(asdict(partly)))) == partly
    with pytest.raises(ValueError):
        facts_from_json({"host": {"cores": "many"}})
    assert facts_from_json({}) == NodeFacts()
