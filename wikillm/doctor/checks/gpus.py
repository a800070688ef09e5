"""GPUs: number, kind, health, and what else they are doing."""

from __future__ import annotations

from collections.abc import Callable

from wikillm.doctor.facts import Gpus, NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Check, Verdict, check, fail, ok, skip, warn

BF16_CAPABILITY = 8.0
BAD_THROTTLE = {
    0x08: "hardware slowdown",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that mean trouble; idle (0x1) and the power cap (0x4) are everyday."""
HOT = 85
FREE_SHARE = 0.9


@check("gpu", "gpus")
def gpu_driver(facts: NodeFacts, needs: Needs) -> Verdict:
    """nvidia-smi answers where there is NVIDIA hardware."""
    gpus = facts.gpus
    if not gpus.smi:
        return ok(f"driver {gpus.driver}, {len(gpus.cards)} GPUs")
    if gpus.hardware:
        return fail(
            f"{gpus.hardware} NVIDIA devices on the bus; nvidia-smi: {gpus.smi}",
            "the driver is missing or does not run",
            "install or reload the driver; in a container: start it with --gpus all",
        )
    return skip("no NVIDIA GPU: runs train on the CPU")


def _gpu_check(judge: Callable[[Gpus, Needs], Verdict]) -> Check:
    """A check that asks only where nvidia-smi lists GPUs."""

    def guarded(facts: NodeFacts, needs: Needs) -> Verdict:
        assert facts.gpus is not None, "the runner asks only where the section is there"
        return judge(facts.gpus, needs) if facts.gpus.cards else skip("no GPU")

    guarded.__name__, guarded.__doc__ = judge.__name__, judge.__doc__
    return check("gpu", "gpus")(guarded)


@_gpu_check
def gpu_count(gpus: Gpus, needs: Needs) -> Verdict:
    """There are as many GPUs as processes will be started."""
    found = f"{len(gpus.cards)} GPUs, {needs.slots} processes"
    if len(gpus.cards) < needs.slots:
        return fail(
            found,
            "two processes on one GPU do not train with NCCL",
            f"slots={len(gpus.cards)} in the hostfile",
        )
    if len(gpus.cards) > needs.slots:
        return warn(
            found, "the others stay idle", f"slots={len(gpus.cards)} in the hostfile, or --gpus"
        )
    return ok(found)


@check("gpu", "gpus")
def gpu_visible(facts: NodeFacts, needs: Needs) -> Verdict:
    """CUDA_VISIBLE_DEVICES hides no GPU that is needed."""
    said = (facts.environment or {}).get("CUDA_VISIBLE_DEVICES")
    if said is None or not facts.gpus.cards:
        return skip("CUDA_VISIBLE_DEVICES is not set" if said is None else "no GPU")
    visible = [word for word in said.split(",") if word.strip() and word.strip() != "-1"]
    found = f"CUDA_VISIBLE_DEVICES={said}, {needs.slots} processes"
    if len(visible) < needs.slots:
        return fail(found, "processes without a GPU", "unset CUDA_VISIBLE_DEVICES")
    return ok(found)


@_gpu_check
def gpu_kind(gpus: Gpus, needs: Needs) -> Verdict:
    """All GPUs of a node are of one kind and size."""
    kinds = sorted({f"{card.name} {card.memory_total or '?'} MiB" for card in gpus.cards})
    if len(kinds) > 1:
        return warn(
            ", ".join(kinds),
            "every step waits for the slowest, the smallest memory counts",
            "CUDA_VISIBLE_DEVICES",
        )
    return ok(f"{len(gpus.cards)} x {kinds[0]}")


@_gpu_check
def gpu_memory(gpus: Gpus, needs: Needs) -> Verdict:
    """The GPUs' memory is free."""
    taken = [
        c
        for c in gpus.cards
        if c.memory_total and (c.memory_used or 0) > (1 - FREE_SHARE) * c.memory_total
    ]
    if taken:
        listed = ", ".join(
            f"GPU {c.index}: {c.memory_used} of {c.memory_total} MiB in use" for c in taken
        )
        return warn(
            listed, "a run that fits an empty GPU may not fit here", "nvidia-smi shows who uses it"
        )
    return ok("free")


@_gpu_check
def gpu_processes(gpus: Gpus, needs: Needs) -> Verdict:
    """No other process computes on the GPUs."""
    if gpus.processes:
        listed = ", ".join(
            f"{name} (pid {pid}, {mib} MiB)" for pid, name, mib in gpus.processes[:4]
        )
        return warn(listed, "it takes memory and time of the run", "wait for it, or ask its owner")
    return ok("none")


@_gpu_check
def gpu_ecc(gpus: Gpus, needs: Needs) -> Verdict:
    """No uncorrected memory errors."""
    known = [card for card in gpus.cards if card.ecc_now is not None]
    if not known:
        return skip("these GPUs count no ECC errors, or ECC is off")
    now = [card for card in known if card.ecc_now]
    if now:
        listed = ", ".join(f"GPU {card.index}: {card.ecc_now}" for card in now)
        return fail(
            f"uncorrected since the last reset: {listed}",
            "results can be wrong",
            "have the GPU reset or replaced",
        )
    ever = [card for card in known if card.ecc_ever]
    if ever:
        listed = ", ".join(f"GPU {card.index}: {card.ecc_ever}" for card in ever)
        return warn(
            f"uncorrected in its lifetime: {listed}", "this memory failed before", "watch it"
        )
    return ok("none")


@_gpu_check
def gpu_rows(gpus: Gpus, needs: Needs) -> Verdict:
    """No memory row waits to be replaced, and none could not be."""
    known = [card for card in gpus.cards if card.row_remap is not None]
    if not known:
        return skip("not told by these GPUs")
    bad = [f"GPU {card.index}: {card.row_remap}" for card in known if card.row_remap]
    if bad:
        return fail(
            ", ".join(bad), "this memory has failed", "pending: reset the GPU; failed: replace it"
        )
    return ok("none")


@_gpu_check
def gpu_slowed(gpus: Gpus, needs: Needs) -> Verdict:
    """No GPU is slowed down by heat or power."""
    slowed = []
    for card in gpus.cards:
        reasons = [text for bit, text in BAD_THROTTLE.items() if (card.throttle or 0) & bit]
        if (card.temperature or 0) >= HOT:
            reasons.append(f"{card.temperature} degrees")
        slowed += [f"GPU {card.index}: {', '.join(reasons)}"] if reasons else []
    if slowed:
        return warn(
            "; ".join(slowed),
            "every step waits for it",
            "nvidia-smi -q -d PERFORMANCE,TEMPERATURE; check cooling",
        )
    return ok("no")


@_gpu_check
def gpu_power(gpus: Gpus, needs: Needs) -> Verdict:
    """The power limit is the default one."""
    known = [card for card in gpus.cards if card.power_limit and card.power_default]
    if not known:
        return skip("not told by these GPUs")
    capped = [card for card in known if (card.power_limit or 0) < 0.99 * (card.power_default or 0)]
    if capped:
        listed = ", ".join(
            f"GPU {c.index}: {c.power_limit:.0f} of {c.power_default:.0f} W" for c in capped
        )
        return warn(
            listed, "slower than its kind", f"sudo nvidia-smi -pl {capped[0].power_default:.0f}"
        )
    return ok(f"{known[0].power_limit:.0f} W")


@_gpu_check
def gpu_persistence(gpus: Gpus, needs: Needs) -> Verdict:
    """Persistence mode is on, so that the driver stays loaded between processes."""
    off = [str(card.index) for card in gpus.cards if card.persistence is False]
    if off:
        return warn(
            f"off on GPU {', '.join(off)}",
            "each start of a process waits for the driver",
            "sudo nvidia-smi -pm 1",
        )
    return ok("on")


@_gpu_check
def gpu_mig(gpus: Gpus, needs: Needs) -> Verdict:
    """No GPU is cut into slices (MIG)."""
    cut = [str(card.index) for card in gpus.cards if card.mig]
    if not cut:
        return ok("off")
    found = f"MIG is on for GPU {', '.join(cut)}"
    if needs.ranks > 1:
        return fail(
            found, "NCCL does not work between slices", "sudo nvidia-smi -mig 0, or one process"
        )
    return warn(found, "the run gets one slice", "sudo nvidia-smi -mig 0 for the whole GPU")


@_gpu_check
def gpu_mode(gpus: Gpus, needs: Needs) -> Verdict:
    """The compute mode lets our processes in."""
    modes = {card.compute_mode for card in gpus.cards if card.compute_mode}
    if "Prohibited" in modes:
        return fail(
            "compute mode Prohibited", "no process may compute on it", "sudo nvidia-smi -c 0"
        )
    if modes - {"Default"}:
        return warn(
            f"compute mode {', '.join(sorted(modes - {'Default'}))}",
            "one process per GPU, no second one for eval",
            "",
        )
    return ok("Default") if modes else skip("not told by these GPUs")


@_gpu_check
def gpu_bf16(gpus: Gpus, needs: Needs) -> Verdict:
    """The GPUs have bf16 where the run asks for it."""
    known = [card.compute_capability for card in gpus.cards if card.compute_capability is not None]
    if not known:
        return skip("this driver does not tell the compute capability")
    least = min(known)
    if least >= BF16_CAPABILITY:
        return ok(f"compute capability {least}")
    if needs.precision == "bf16":
        return fail(
            f"compute capability {least}", f"bf16 needs {BF16_CAPABILITY}", "train.precision=fp16"
        )
    return warn(
        f"compute capability {least}: no bf16",
        "trained in fp16, which needs loss scaling",
        "train.precision=fp16",
    )


@_gpu_check
def gpu_links(gpus: Gpus, needs: Needs) -> Verdict:
    """GPUs of a node are joined by NVLink."""
    if len(gpus.cards) < 2 or not gpus.links:
        return skip("one GPU" if len(gpus.cards) < 2 else "nvidia-smi topo -m says nothing")
    slow = [f"{a}-{b} {kind}" for a, b, kind in gpus.links if not kind.startswith("NV")]
    if not slow:
        return ok(f"{gpus.links[0][2]} between all")
    if len(slow) < len(gpus.links):
        return warn(
            f"not by NVLink: {', '.join(slow[:6])}",
            "collectives run at the slowest link",
            "keep to one island: CUDA_VISIBLE_DEVICES",
        )
    far = [text for text in slow if text.endswith(("SYS", "NODE"))]
    if far:
        return warn(
            f"no NVLink; {', '.join(far[:6])}",
            "through the processor: ZeRO-3 waits for traffic",
            "--deepspeed zero1 or zero2",
        )
    return ok(f"PCIe: {slow[0].split()[1]}")


@_gpu_check
def gpu_pcie(gpus: Gpus, needs: Needs) -> Verdict:
    """The PCIe link has its full width."""
    known = [card for card in gpus.cards if card.pcie_width and card.pcie_width_max]
    if not known:
        return skip("not told by these GPUs")
    narrow = [c for c in known if (c.pcie_width or 0) < (c.pcie_width_max or 0)]
    if narrow:
        listed = ", ".join(f"GPU {c.index}: x{c.pcie_width} of x{c.pcie_width_max}" for c in narrow)
        return warn(
            listed, "offload and loading are slower", "reseat the card, or look for a shared slot"
        )
    return ok(f"x{known[0].pcie_width}")
