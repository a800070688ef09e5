"""The parts that the memory of one rank is made of, the same for GPUs and CPUs."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank, on its GPU or on the host. `total` is the sum of the parts."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    buckets: int
    context: int
    fragmentation: int

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        return {field.name: int(getattr(self, field.name)) for field in fields(self)}
