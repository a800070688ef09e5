"""The three products of the linear cross entropy in 8-bit floats: `Float8Products`.

Hidden states and weight are e4m3 (arXiv:2209.05433), each with one scale per call: a power of two
from the largest element, computed on the device without a synchronisation. The logits' gradient is
e5m2 with a constant scale. It is in [-1, 1] (the probability, minus 1 at the label). A scale of
2^15 keeps probabilities down to 2e-9 as normal numbers; e4m3 would round such small ones, usual
with a vocabulary of 150,000, to 0. Sums are float32. A scale per row would need other GPU kernels.

`torch._scaled_mm` needs multiples of 16, and a second factor whose columns are contiguous. So the
weight (once per call) and each chunk's gradient are copied transposed.
Shapes: N rows (tokens), C rows of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MULTIPLE = 16  # of H, V and C
_GRADIENT_SCALE = 2.0**15  # of values in -1..1; e5m2's largest is 57,344
_TILE = 16_384  # rows of the weight's gradient that are multiplied at a time


class Float8Products:
    """Logits and both gradients of `hidden_NH @ weight_VH^T`, chunk by chunk of rows."""

    def __init__(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> None:
        self._hidden_NH, self._hidden_scale = to_e4m3(hidden_NH)
        self._weight_VH, self._weight_scale = to_e4m3(weight_VH)
        self._weight_HV: torch.Tensor | None = None
        self._one_over = torch.full((), 1 / _GRADIENT_SCALE, device=hidden_NH.device)

    def logits(self, rows: slice, out_CV: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the rows into `out_CV`."""
        out: torch.Tensor = torch._scaled_mm(
            self._hidden_NH[rows],
            self._weight_VH.t(),
            scale_a=self._hidden_scale,
            scale_b=self._weight_scale,
            out_dtype=out_CV.dtype,
            use_fast_accum=True,  # common for the forward; the gradients' sums are longer
            out=out_CV,
        )
        return out

    def gradient(self, grad_CV: torch.Tensor, has_label_C1: torch.Tensor) -> torch.Tensor:
        """The logits' gradient in e5m2; rows without a label are 0. Writes over `grad_CV`."""
        return grad_CV.mul_(has_label_C1 * _GRADIENT_SCALE).to(torch.float8_e5m2)

    def grad_hidden(self, grad_CV: torch.Tensor, out_CH: torch.Tensor) -> None:
        """grad @ weight into `out_CH`."""
        if self._weight_HV is None:
            self._weight_HV = self._weight_VH.t().contiguous()
        torch._scaled_mm(
            grad_CV,
            self._weight_HV.t(),
            scale_a=self._one_over,
            scale_b=self._weight_scale,
            out_dtype=out_CH.dtype,
            out=out_CH,
        )

    def add_grad_weight(self, total_VH: torch.Tensor, grad_CV: torch.Tensor, rows: slice) -> None:
        """total += grad^T @ hidden, in tiles of the vocabulary, which keep the product small."""
        hidden_HC = self._hidden_NH[rows].t().contiguous()
        for first in range(0, total_VH.shape[0], _TILE):
            grad_VC = grad_CV[:, first : first + _TILE].t().contiguous()
            product_VH = torch._scaled_mm(
                grad_VC,
                hidden_HC.t(),
                scale_a=self._one_over,
                scale_b=self._hidden_scale,
                out_dtype=torch.float32,
            )
            total_VH[first : first + _TILE].add_(product_VH)


def to_e4m3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x / scale in e4m3, and the scale: the least power of two with which every element fits.

    A division by a power of two is exact, so only the cast to e4m3 rounds. An element that is not
    finite makes the scale, and so every product, infinite or NaN.
    """
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = (x.detach().abs().amax().float() / largest).log2().ceil().clamp_min(-100.0).exp2()
    narrow = x / scale.view(1)  # of one dimension, so that the division is in float32
    return narrow.to(torch.float8_e4m3fn), scale


def pad_rows(
    hidden_NH: torch.Tensor, labels_N: torch.Tensor, ignore_index: int, chunk_rows: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Pad rows and rows per chunk to multiples of 16, with zero rows without a label at the end.

    float64 hidden states become float32.
    """
    if hidden_NH.dtype == torch.float64:
        hidden_NH = hidden_NH.float()
    more = -len(hidden_NH) % MULTIPLE
    if more:
        hidden_NH = F.pad(hidden_NH, (0, 0, 0, more))
        labels_N = F.pad(labels_N, (0, more), value=ignore_index)
    return hidden_NH, labels_N, -(-chunk_rows // MULTIPLE) * MULTIPLE
