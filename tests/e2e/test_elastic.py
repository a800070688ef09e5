"""One of two nodes is lost: the run goes on without it, and ends as if nothing had happened."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from harness.netns import cluster, missing
from harness.places import ENVIRON, QUIET, SharedPlace, close_to, ends
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.tiny_run import Words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("WIKILLM_MULTINODE"), reason="part of `make multinode`"),
    pytest.mark.skipif(missing() is not None, reason=f"needs network namespaces: {missing()}"),
]
STEPS = ("train.max_steps=40", "train.lr_scheduler_type=constant_with_warmup", *QUIET[1:])


@pytest.mark.parametrize("recipe", ["zero1", "zero3"])
def test_one_node_goes_on_with_the_same_tokens_when_the_other_is_gone(
    repo: Path, words: Words, tmp_path: Path, recipe: str
) -> None:
    """The global batch and the losses are those of an uninterrupted run of two ranks."""
    place = SharedPlace(repo, tmp_path, words)
    where = ["--hostfile", str(place.hostfile), "--deepspeed", recipe, "--go", "--elastic"]
    line = words(place.run, *STEPS, "train.save_steps=2")
    argv = [sys.executable, "-m", "wikillm", "launch", "hostfile", *where, *line]
    with cluster(tmp_path / "nodes", "node1", "node2") as two:
        process = two.popen("node1", argv, cwd=place.workdir, log=place.log, **ENVIRON)
        place.wait_for_steps(process, 6)
        two.kill("node2")
        ends(process, place, within=300)
    assert process.returncode == 0, place.tail()
    assert place.exit()["code"] == 0 and place.exit()["step"] == 40
    assert "leaving out node2: no answer over ssh" in place.log.read_text(errors="replace")
    assert list(place.losses()) == list(range(1, 41)), "each step counts once"
    whole = words(tmp_path / "whole", *STEPS, "train.save_steps=1000")
    (reference, _) = run_ranks(train_with_options, 2, whole, {"deepspeed": recipe})
    assert close_to(place.losses(), reference["losses"])
