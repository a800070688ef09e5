"""An unknown first node is reported with a fix that applies."""

from __future__ import annotations

import pytest

from wikillm.core.errors import MachineError
from wikillm.supervise.network import find_route


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (None, "node9.invalid"),  # a name that no name server gives (RFC 2606)
        ("7", "node9.invalid"),
        (None, "a" * 64),  # longer than a label of DNS
    ],
)
def test_an_unknown_first_node_is_named_with_a_fix(
    job: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch file of Slurm takes the first node's name from Slurm: it has no --master-addr."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with pytest.raises(
        MachineError, match=f"cannot resolve the name of the first node, {name}"
    ) as caught:
        find_route(name)
    assert "/etc/hosts" in str(caught.value.fix)
    assert ("--master-addr" in str(caught.value.fix)) == (job is None)
