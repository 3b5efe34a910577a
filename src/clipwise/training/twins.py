"""Twins Training's correlation loss.

Wang et al., *Learning spatiotemporal and motion features in a unified 2D network for action recognition*, section 3.5.
Of the logits y of two augmentations A and B of the same N clips, each class's column is divided by its length over the
whole batch:

    z_ni = y_ni / √(Σ_n y_ni²)            C_ij = Σ_n zᴬ_ni zᴮ_nj                     (eq. 8)
    L_cor = Σ_i (1 − C_ii)² + β Σ_i Σ_{j≠i} C_ij²                                    (eq. 9)
    L = ½ (L_clsᴬ + L_clsᴮ) + λ L_cor                                                (eq. 10, in the task)

The columns are not centred, unlike those of Barlow Twins, from which the loss comes. C holds sums over clips and so do
the lengths: with several processes only those sums travel, C² + 2C numbers for C classes however many clips there are,
and the processes need not have equally many.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["correlation_loss"]


def correlation_loss(logits_a: Tensor, logits_b: Tensor, beta: float) -> Tensor:
    """(N, C), (N, C) → (): eq. 9 between the logits of two augmentations of the same clips, in float32 or better.

    A class whose logits are all 0 has no direction: its column stays 0, so that C_ii = 0 adds 1 to the loss. Its
    gradient is finite, as though the column's length were 1.

    Where ``torch.distributed`` runs several processes, N is one process's share, all must call, and the loss is the
    same in all: that of the whole batch. The gradient comes out as many times too large as there are processes, which
    is what averaging gradients, as DistributedDataParallel does, makes right.

    Args:
        logits_a, logits_b: of either augmentation, clip for clip; N may differ between processes, and be 0.
        beta: weight of the part off the diagonal.

    Raises:
        ValueError: if the two are not (N, C) of equal shape.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise ValueError(
            f"the logits of twins are (N, C) and of equal shape, got {tuple(logits_a.shape)} and "
            f"{tuple(logits_b.shape)}"
        )
    with torch.autocast(logits_a.device.type, enabled=False):
        exact = torch.promote_types(logits_a.dtype, torch.float32)
        a, b = logits_a.to(exact), logits_b.to(exact)
        classes = a.shape[1]
        sums: Tensor = torch.cat(((a.T @ b).flatten(), a.square().sum(0), b.square().sum(0)))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            sums = _SumOverProcesses.apply(sums)
        products, of_a, of_b = sums.split((classes * classes, classes, classes))
        correlation = products.view(classes, classes) / _length(of_a)[:, None] / _length(of_b)
        same = torch.eye(classes, dtype=torch.bool, device=correlation.device)
        apart = correlation.masked_fill(same, 0.0).square().sum()
        loss: Tensor = (1 - correlation.diagonal()).square().sum() + beta * apart
        return loss


def _length(squares: Tensor) -> Tensor:
    """√x; 1 where x is 0, with no gradient there."""
    return torch.where(squares > 0, squares, 1.0).sqrt()


class _SumOverProcesses(torch.autograd.Function):
    """The sum of the processes' tensors, in each of them; so is the gradient, for each one's loss depends on all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)
