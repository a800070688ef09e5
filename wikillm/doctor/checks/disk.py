"""Room for what the run writes, and the speed of writing it."""

from __future__ import annotations

from wikillm.core.files import NETWORK_KINDS
from wikillm.core.units import format_seconds, format_size
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Verdict, check, fail, ok, skip, warn

LEAST_INODES = 10_000
LEAST_TEMPORARY = 2**30
LONGEST_SAVE = 600.0


@check("disk", "disk")
def run_folder(facts: NodeFacts, needs: Needs) -> Verdict:
    """The run directory can be written."""
    place = facts.disk.run
    if place.is_writable:
        return ok(place.path)
    return fail(
        f"{place.existing} cannot be written", "checkpoints and logs lie there", "run.dir=FOLDER"
    )


@check("disk", "disk")
def checkpoint_room(facts: NodeFacts, needs: Needs) -> Verdict:
    """The checkpoints that are kept fit on the disk."""
    disk, place = facts.disk, facts.disk.run
    all_of_them = max(
        needs.checkpoint, needs.checkpoint * needs.checkpoints_kept - disk.checkpoints_stay
    )
    free = place.free + disk.checkpoints_go
    found = f"{format_size(place.free)} free on {place.existing}"
    if disk.checkpoints_go:
        found += f" and {format_size(disk.checkpoints_go)} more once leftovers and superfluous checkpoints have gone"
    found += f", about {format_size(all_of_them)} for {needs.checkpoints_kept} checkpoints"
    found += (
        f" of which {format_size(disk.checkpoints_stay)} are there" if disk.checkpoints_stay else ""
    )
    if free < needs.least_checkpoint:
        fewer = (
            "train.save_total_limit=1, or "
            if disk.checkpoints_stay and needs.checkpoints_kept > 2
            else ""
        )
        return fail(
            found,
            f"not one fits: at least {format_size(needs.least_checkpoint)}",
            f"{fewer}run.dir=FOLDER on a larger disk",
        )
    if free < all_of_them:
        return warn(
            found,
            "saving fails when the disk is full",
            "train.save_total_limit=1, or run.dir=FOLDER on a larger disk",
        )
    return ok(found)


@check("disk", "disk")
def store_room(facts: NodeFacts, needs: Needs) -> Verdict:
    """The token store fits on the disk."""
    disk = facts.disk
    if disk.store_stands or not disk.data_bytes:
        return skip(
            "the store stands already" if disk.store_stands else "no source to estimate it from"
        )
    found = f"{format_size(disk.store.free)} free on {disk.store.existing}, about {format_size(disk.data_bytes)} for the store"
    if disk.store.free < disk.data_bytes:
        return warn(
            found,
            "building it stops, unless a store of this source stands already",
            "data.store=FOLDER on a larger disk",
        )
    return ok(found)


@check("disk", "disk")
def inodes(facts: NodeFacts, needs: Needs) -> Verdict:
    """The file system can hold more files."""
    free = facts.disk.run.inodes_free
    if free is None:
        return skip("this file system does not count them")
    if free < LEAST_INODES:
        return warn(
            f"{free} free on {facts.disk.run.existing}",
            "no new file can be made, however much room there is",
            "df -i",
        )
    return ok(f"{free:,} free")


@check("disk", "disk")
def save_speed(facts: NodeFacts, needs: Needs) -> Verdict:
    """A checkpoint is written in reasonable time (measured with one synced file of 32 MiB)."""
    speed = facts.disk.run.bytes_per_second
    if not speed:
        return skip("not measured")
    seconds = needs.checkpoint / needs.nodes / speed
    found = f"{format_size(speed)}/s, about {format_seconds(seconds)} per checkpoint"
    if seconds > LONGEST_SAVE:
        return warn(
            found,
            "all GPUs wait while a checkpoint is written",
            "run.dir=FOLDER on a faster disk, a larger train.save_steps",
        )
    return ok(found)


@check("disk", "disk")
def lasting(facts: NodeFacts, needs: Needs) -> Verdict:
    """The run directory survives a reboot, and the end of a container."""
    kind = facts.disk.run.kind
    if kind in ("tmpfs", "ramfs"):
        return warn(
            f"{facts.disk.run.existing} is {kind}",
            "checkpoints are gone after a reboot, and take memory",
            "run.dir=FOLDER on a disk",
        )
    if kind == "overlay":
        return warn(
            f"{facts.disk.run.existing} is the container's own layer",
            "checkpoints go with the container",
            "run.dir=FOLDER on a mounted volume",
        )
    return ok(kind or "unknown kind")


@check("disk", "disk")
def shared_kind(facts: NodeFacts, needs: Needs) -> Verdict:
    """With several nodes the run directory is on a network file system."""
    if needs.nodes == 1:
        return skip("one node")
    kind = facts.disk.run.kind
    if kind.startswith(NETWORK_KINDS):
        return ok(kind)
    return warn(
        f"{facts.disk.run.existing} is {kind or 'unknown'}",
        "it looks local; `shared-folder` tests it by writing",
        "run.dir=FOLDER on a shared folder",
    )


@check("disk", "disk")
def temporary_room(facts: NodeFacts, needs: Needs) -> Verdict:
    """There is room for temporary files."""
    place = facts.disk.temporary
    if not place.is_writable:
        return fail(
            f"{place.existing} cannot be written",
            "compilers and caches need it",
            "export TMPDIR=FOLDER",
        )
    found = f"{format_size(place.free)} free on {place.existing}"
    return (
        ok(found)
        if place.free >= LEAST_TEMPORARY
        else warn(found, "compilers and caches need it", "export TMPDIR=FOLDER")
    )


@check("run", "disk")
def data_source(facts: NodeFacts, needs: Needs) -> Verdict:
    """The files of data.path are there and readable."""
    disk = facts.disk
    if not disk.data_error:
        return (
            ok(f"{len(disk.data)} files")
            if disk.data
            else skip("addresses or finished stores are named; the doctor opens neither")
        )
    if disk.store_stands:
        return skip(f"the store stands; {disk.data_error}")
    return fail(
        disk.data_error, "the token store is built from it", "data.path=FILE, as this node sees it"
    )


@check("run", "disk")
def batch(facts: NodeFacts, needs: Needs) -> Verdict:
    """The batch divides over the processes."""
    if needs.batch_error:
        return fail(f"{needs.ranks} processes", needs.batch_error, "")
    return ok(f"{needs.ranks} processes")
