"""Are the GPUs sound, free, and as many as the run needs? Facts: nvidia_smi.py."""

from __future__ import annotations

from collections.abc import Callable

from wikillm.doctor.checks import Check, Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import GpuFacts, NodeFacts
from wikillm.doctor.needs import Needs

BF16_CAPABILITY = 8.0
TAKEN_SHARE = 0.1


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


def _gpu_check(look: Callable[[GpuFacts, Needs], Verdict]) -> Check:
    """A check that runs only where nvidia-smi lists GPUs."""

    def guarded(facts: NodeFacts, needs: Needs) -> Verdict:
        return look(facts.gpus, needs) if facts.gpus.cards else skip("no GPU")

    guarded.__name__ = look.__name__
    guarded.__doc__ = look.__doc__
    return check("gpu", "gpus")(guarded)


@_gpu_check
def gpu_count(gpus: GpuFacts, needs: Needs) -> Verdict:
    """There are as many GPUs as processes will be started."""
    count = len(gpus.cards)
    found = f"{count} GPUs, {needs.slots} processes"
    if count < needs.slots:
        return fail(found, "NCCL needs a GPU for each process", f"slots={count} in the hostfile")
    if count > needs.slots:
        return warn(found, "the other GPUs stay idle", f"slots={count} in the hostfile, or --gpus")
    return ok(found)


@check("gpu", "gpus")
def gpu_visible(facts: NodeFacts, needs: Needs) -> Verdict:
    """CUDA_VISIBLE_DEVICES hides no GPU that is needed."""
    visible = (facts.environment or {}).get("CUDA_VISIBLE_DEVICES")
    if visible is None or not facts.gpus.cards:
        return skip("CUDA_VISIBLE_DEVICES is not set" if visible is None else "no GPU")
    words = [word for word in visible.split(",") if word.strip() and word.strip() != "-1"]
    found = f"CUDA_VISIBLE_DEVICES={visible}, {needs.slots} processes"
    if len(words) < needs.slots:
        return fail(found, "some processes have no GPU", "unset CUDA_VISIBLE_DEVICES")
    return ok(found)


@_gpu_check
def gpu_free(gpus: GpuFacts, needs: Needs) -> Verdict:
    """No other process uses the GPUs' memory."""
    taken = [
        f"GPU {card.index}: {card.memory_used} of {card.memory_total} MiB in use"
        for card in gpus.cards
        if card.memory_total and (card.memory_used or 0) > TAKEN_SHARE * card.memory_total
    ]
    if taken:
        why = "the run gets less memory and time"
        return warn(", ".join(taken), why, "wait for that process, or ask its owner")
    return ok("free")


@_gpu_check
def gpu_ecc(gpus: GpuFacts, needs: Needs) -> Verdict:
    """The GPUs report no uncorrected memory errors."""
    if all(card.ecc is None for card in gpus.cards):
        return skip("these GPUs count no ECC errors, or ECC is off")
    bad = [f"GPU {card.index}: {card.ecc}" for card in gpus.cards if card.ecc]
    if bad:
        found = f"uncorrected since the last reset: {', '.join(bad)}"
        return fail(found, "results can be wrong", "have the GPU reset or replaced")
    return ok("none")


@_gpu_check
def gpu_mode(gpus: GpuFacts, needs: Needs) -> Verdict:
    """No GPU is cut into slices (MIG), and the compute mode admits processes."""
    cut = [str(card.index) for card in gpus.cards if card.mig]
    if cut:
        found = f"MIG is on for GPU {', '.join(cut)}"
        if needs.ranks > 1:
            return fail(found, "NCCL does not work between slices", "sudo nvidia-smi -mig 0")
        fix = "sudo nvidia-smi -mig 0 for the whole GPU"
        return warn(found, "the run gets one slice", fix)
    if any(card.compute_mode == "Prohibited" for card in gpus.cards):
        why = "no process may compute on it"
        return fail("compute mode Prohibited", why, "sudo nvidia-smi -c 0")
    return ok("no slices")


@_gpu_check
def gpu_bf16(gpus: GpuFacts, needs: Needs) -> Verdict:
    """The GPUs have bf16 if the run asks for it."""
    known = [card.compute_capability for card in gpus.cards if card.compute_capability is not None]
    if not known:
        return skip("this driver does not report the compute capability")
    least = min(known)
    if least >= BF16_CAPABILITY:
        return ok(f"compute capability {least}")
    if needs.precision == "bf16":
        why = f"bf16 needs {BF16_CAPABILITY}"
        return fail(f"compute capability {least}", why, "train.precision=fp16")
    why = "the run trains in fp16, which needs loss scaling"
    return warn(f"compute capability {least}: no bf16", why, "train.precision=fp16")
