"""TRN, multi-scale, on ResNet-50 (Zhou, Andonian, Oliva, Torralba, *Temporal relational reasoning in videos*, 2018).

With f_t the 256 numbers to which a Linear reduces frame t's pooled features (dropout before it), and for each number of
frames k = T … 2 a pair g_k, h_k:

    g_k(i1 … ik) = ReLU(Linear([ReLU f_i1, …, ReLU f_ik]))      i1 < … < ik;  256·k → 256
    logits       = Σ_k Σ over three relations of k frames  h_k(g_k(i1 … ik))      h_k Linear, 256 → classes

with fewer than three where there are fewer: T frames have one relation.

Decided here:
- The h_k are linear, so their sum is one ``fc`` on [Σ g_T, …, Σ g_2], with one bias instead of T-1.
- Training draws the three relations of each k anew for each batch, without repetition, from torch's generator. The
  authors draw in testing too, so that a clip's score changes from run to run; evaluation here takes the expected value
  of the same sum, three times the mean over all relations of k frames; over a hundred of them, evenly spaced in their
  order, where there are more, which begins at T = 9.
- T is 2 to 16: the relations double with each frame, and of 16 there are 65 519.

As the authors': the reducing Linear starts at N(0, 0.001), bias 0, the others as PyTorch's do.

Counts: 26.64 M parameters with 174 classes and 8 frames, which is what MMAction2 prints for its TRN on ResNet-50; the
convolutions are TSN's. The 31.8 M of TSM's table do not come out of the authors' multi-scale module.

Weights: ResNet's keys are torchvision's, so an ImageNet file loads. In zhoubolei/TRN-pytorch (TRNmodule.py, commit
5c5ecf8; models.py, commit 00c5fdd) ``new_fc`` is ``reduce``, ``consensus.fc_fusion_scales.i.1`` is
``relations.i.linear`` (the scales too run from T down to 2); the weights of the ``….i.3`` side by side are
``fc.weight``, and ``fc.bias`` is the sum of their biases, each as many times as k has relations drawn.
"""

import itertools

import torch
from torch import Tensor, nn

from clipwise.models.network import ModelEntry
from clipwise.models.resnet import ResNet

__all__ = ["MODELS", "TRN", "trn_resnet50"]

_FEATURES = 256
_DRAWN = 3
_MOST_IN_EVALUATION = 100


class _Relations(nn.Module):
    """What the relations of k of a clip's T frames add up to."""

    every: Tensor
    spread: Tensor

    def __init__(self, k: int, total: int) -> None:
        super().__init__()
        self.linear = nn.Linear(k * _FEATURES, _FEATURES)
        every = torch.tensor(list(itertools.combinations(range(total), k)))
        some = torch.linspace(0, len(every) - 1, min(len(every), _MOST_IN_EVALUATION)).round().long()
        self.register_buffer("every", every, persistent=False)
        self.register_buffer("spread", every[some], persistent=False)
        self.drawn = min(len(every), _DRAWN)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, 256) → (N, 256): drawn relations in training, in evaluation their expectation."""
        if self.training:
            # Not randperm: PyTorch's compiler fails on an index by its slice.
            frames = self.every[torch.rand(len(self.every), device=features.device).topk(self.drawn).indices]
        else:
            frames = self.spread
        relations: Tensor = self.linear(features[:, frames].flatten(2)).relu()
        return self.drawn * relations.mean(dim=1)


class TRN(ResNet):
    """ResNet-50 whose frames' features are joined by relations of two frames, three, … and all.

    Args:
        num_classes: outputs of ``fc``.
        num_frames: T of a clip, 2 to 16.
        dropout: probability before ``reduce``.
        caffe_stride, base_width: see :class:`~clipwise.models.resnet.ResNet`.

    Raises:
        ValueError: for another number of frames, or what ResNet refuses.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        dropout: float = 0.5,
        caffe_stride: bool = False,
        base_width: int = 64,
    ) -> None:
        if not 2 <= num_frames <= 16:
            raise ValueError(
                f"TRN relates 2 to 16 frames, got num_frames={num_frames}: one frame has no relation to another, and "
                "the relations double with each frame; sample fewer"
            )
        super().__init__(
            50,
            num_classes=num_classes,
            num_frames=num_frames,
            dropout=dropout,
            caffe_stride=caffe_stride,
            base_width=base_width,
        )

    def _make_head(self, channels: int) -> None:
        self.reduce = nn.Linear(channels, _FEATURES)
        nn.init.normal_(self.reduce.weight, std=0.001)
        nn.init.zeros_(self.reduce.bias)
        self.relations = nn.ModuleList(_Relations(k, self.num_frames) for k in range(self.num_frames, 1, -1))
        self.fc = nn.Linear(_FEATURES * (self.num_frames - 1), self.num_classes)
        # The start of T-1 layers of 256 inputs each, not of one with all of them.
        nn.init.uniform_(self.fc.weight, -(_FEATURES**-0.5), _FEATURES**-0.5)

    def classify(self, features: Tensor) -> Tensor:
        """(N, T, 2048) → (N, num_classes) logits. The dropout stands before ``reduce``, not before ``fc``, which takes
        the relations of T frames first, those of two last."""
        features = self.reduce(self.dropout(features)).relu()
        logits: Tensor = self.fc(torch.cat([relations(features) for relations in self.relations], dim=1))
        return logits


def trn_resnet50(
    *,
    num_classes: int,
    num_frames: int,
    dropout: float = 0.5,
    caffe_stride: bool = False,
    base_width: int = 64,
) -> TRN:
    """Multi-scale TRN on ResNet-50."""
    return TRN(
        num_classes=num_classes,
        num_frames=num_frames,
        dropout=dropout,
        caffe_stride=caffe_stride,
        base_width=base_width,
    )


MODELS = {"trn_resnet50": ModelEntry(trn_resnet50, "Zhou et al. 2018, TRN", image_backbone="resnet50")}
