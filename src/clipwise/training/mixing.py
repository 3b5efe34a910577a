"""Mixup and cutmix for clips.

    mixup    x̃ = λ x_i + (1 − λ) x_j                    Zhang et al., *mixup: Beyond empirical risk minimization*, 2018
    cutmix   x̃ = x_i, with a rectangle from x_j          Yun et al., *CutMix*, 2019
    both     ỹ = λ y_i + (1 − λ) y_j                    λ ~ Beta(α, α)

λ, and cutmix's rectangle, are drawn once a batch, as in both papers' code; all frames of a clip have the same partner
and the same rectangle. The partner j is the clip before i in the batch, the last one for the first: batches are in
random order anyway, and no clip is mixed with itself. Cutmix's rectangle is cut off at the border and rounded to
pixels, and λ then becomes the share of the picture that is left of x_i.

Cross-entropy, smoothed or not, and the binary one are linear in the target, so ỹ is never made: the loss is λ times
that of y_i plus 1 − λ times that of y_j. All draws come from torch's global generator, which each step seeds.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipwise.config import TrainingConfig
from clipwise.data.transforms import Box

__all__ = ["Mixed", "cutmix_box", "mix"]


class Mixed(NamedTuple):
    """A batch after mixing."""

    clips: Tensor
    """(N, T, 3, H, W)"""
    partner: Tensor
    """(N,) the place in the batch of the clip that was mixed into each."""
    share: float
    """λ, the share that is left of each clip."""


def mix(clips: Tensor, training: TrainingConfig, *, copies: int = 1) -> Mixed:
    """(N, T, 3, H, W) float → the same shape, by mixup or cutmix as the configuration says, at least one of them.

    Args:
        clips: pixels, normalised or not; changed in place by cutmix.
        training: its ``mixup`` and ``cutmix``; with both, a draw decides.
        copies: how many augmentations of one clip follow each other; each gets its like of the partner's.
    """
    # Indexing keeps the channels-last layout, which torch.roll does not.
    partner = torch.arange(len(clips), device=clips.device).roll(copies)
    cut = training.cutmix > 0 and (training.mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(training.cutmix if cut else training.mixup, dtype=torch.float64)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if cut:
        height, width = clips.shape[-2:]
        box = cutmix_box(height, width, share)
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        clips[..., rows, columns] = clips[..., rows, columns][partner]
        share = 1 - box.height * box.width / (height * width)
    else:
        clips = torch.lerp(clips[partner], clips, share)
    return Mixed(clips, partner, share)


def cutmix_box(height: int, width: int, share: float) -> Box:
    """Draw cutmix's rectangle: sides √(1 − share) of the picture's, centre anywhere, cut off at the border."""
    side = math.sqrt(1 - share)
    middle = [int(torch.randint(size, ())) for size in (height, width)]
    half = [round(size * side) / 2 for size in (height, width)]
    start = [max(0, math.ceil(at - by)) for at, by in zip(middle, half, strict=True)]
    end = [min(size, math.ceil(at + by)) for at, by, size in zip(middle, half, (height, width), strict=True)]
    return Box(start[0], start[1], end[0] - start[0], end[1] - start[1])
