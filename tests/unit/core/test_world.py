"""Rank and size come from the environment alone."""

from __future__ import annotations

import os

import pytest

from wikillm.core.errors import MachineError
from wikillm.core.world import World, adopt_open_mpi


def test_a_lone_process_is_a_world_of_one() -> None:
    world = World.from_env({})
    assert (world, world.is_main, world.nodes) == (World(0, 1, 0, 1), True, 1)


def test_the_variables_of_a_launcher_are_read() -> None:
    environ = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    world = World.from_env(environ)
    assert world == World(rank=5, size=16, local_rank=1, local_size=4)
    assert (world.nodes, world.is_main) == (4, False)
    deepspeeds = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}
    assert World.from_env(deepspeeds) == world


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4"},
    ],
)
def test_contradictory_variables_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(MachineError, match="contradict") as caught:
        World.from_env(environ)
    assert f"RANK={environ['RANK']}" in str(caught.value)


def test_a_variable_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(MachineError, match="WORLD_SIZE is not a number"):
        World.from_env({"WORLD_SIZE": "two"})


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real environment without a launcher's variables; what `export` sets is undone."""
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE MASTER_ADDR MASTER_PORT"
    for name in names.split():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_export_makes_a_lone_process_a_group(environ: None) -> None:
    World.from_env().export()
    assert World.from_env() == World()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and int(os.environ["MASTER_PORT"]) > 0


def test_export_leaves_a_launchers_variables(
    environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    World(1, 2, 1, 2).export()
    assert (os.environ["MASTER_ADDR"], os.environ["RANK"]) == ("10.0.0.1", "1")


def test_export_refuses_half_a_launcher(environ: None) -> None:
    with pytest.raises(MachineError, match="WORLD_SIZE=2"):
        World(0, 2, 0, 2).export()


OPEN_MPI = {
    f"OMPI_COMM_WORLD_{name}": value
    for name, value in zip(("RANK", "SIZE", "LOCAL_RANK"), "341", strict=True)
}


def test_open_mpis_names_are_translated() -> None:
    environ = {"MASTER_ADDR": "node1", **OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    adopt_open_mpi(environ)
    assert World.from_env(environ) == World(3, 4, 1, 2)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("node1", "29500")


def test_open_mpi_on_several_nodes_needs_an_address() -> None:
    with pytest.raises(MachineError, match="MASTER_ADDR"):
        adopt_open_mpi({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    alone = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    adopt_open_mpi(alone)
    assert alone["MASTER_ADDR"] == "127.0.0.1"


def test_incomplete_variables_of_open_mpi_are_named() -> None:
    with pytest.raises(MachineError, match="OMPI_COMM_WORLD_LOCAL_SIZE not set"):
        adopt_open_mpi(dict(OPEN_MPI))


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "x", "-"])
def test_a_size_that_is_not_a_number_is_named(name: str, value: str) -> None:
    with pytest.raises(MachineError, match=f"{name} is not a number") as caught:
        World.from_env({name: value}).check_rendezvous({name: value})
    assert f"unset {name}" in str(caught.value)


def test_a_launchers_own_names_win_over_open_mpis() -> None:
    environ = {"RANK": "0", **OPEN_MPI}
    adopt_open_mpi(environ)
    assert environ == {"RANK": "0", **OPEN_MPI}


MEETING = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
BAD_PORTS = ["", "65536", "port"]


@pytest.mark.parametrize(
    ("name", "value"), [("MASTER_ADDR", ""), *(("MASTER_PORT", port) for port in BAD_PORTS)]
)
def test_several_ranks_without_a_rendezvous_address_are_refused(name: str, value: str) -> None:
    World.from_env(MEETING).check_rendezvous(dict(MEETING))
    environ = MEETING | {name: value}
    with pytest.raises(MachineError, match="no rendezvous address for the") as caught:
        World.from_env(environ).check_rendezvous(environ)
    assert name in str(caught.value)


def test_a_lone_process_drops_the_variables_of_a_launcher() -> None:
    environ = {"RANK": "0", "LOCAL_RANK": "0", "PATH": "/bin", "MASTER_ADDR": "node1"}
    World.from_env(environ).check_rendezvous(environ)
    assert environ == {"PATH": "/bin", "MASTER_ADDR": "node1"}


@pytest.mark.parametrize("name", ["PMI_SIZE", "MV2_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_an_unknown_mpi_is_refused(name: str) -> None:
    with pytest.raises(MachineError, match="each would train alone") as caught:
        World().check_rendezvous({name: "2"})
    assert f"unset {name}" in str(caught.value)
    World().check_rendezvous({name: "1"})
