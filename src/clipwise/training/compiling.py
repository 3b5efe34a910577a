"""The network compiled for training, where that pays and works."""

import logging
from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor

from clipwise.compiling import compile_static
from clipwise.models.network import VideoNetwork

__all__ = ["CompiledNetwork", "compiling_pays"]

_log = logging.getLogger(__name__)

_STEPS = 1000
"""Compiling takes about a minute, which as many steps win back: on an H200, 32 clips of 8×224×224 in bf16, TSN on
ResNet-50 goes from 577 to 819 clips/s, STM from 279 to 629, that is 16 and 64 ms a step."""


def compiling_pays(setting: bool | Literal["auto"], device: torch.device, steps: int) -> bool:
    """Whether a run of so many steps is to be compiled: what the setting says, and of itself a long one on a GPU.

    On a CPU compiling was measured not to pay in training: convolutions take the time there, and bf16 with
    channels-last is as fast without.
    """
    return device.type == "cuda" and steps >= _STEPS if setting == "auto" else setting


class CompiledNetwork:
    """(N, T, 3, H, W) → (N, num_classes) as the network gives it in training, compiled where N is one of ``sizes``.

    One graph for each size, made for it alone: a graph for any number of clips is slower, and would be taken for the
    usual one too once it is there. All else runs uncompiled, so that nothing is compiled again in the course of a run:
    an epoch's last clips, a batch of which a video could not be read, and validation, whose network may be another one
    (the mean of the weights), in another mode and under another protocol.

    It is the network's call that is compiled, with its parameters, no module around it: state dict, optimiser, mean of
    the weights and what they are saved as know nothing of it.

    Where the first attempt fails (no C++ compiler, no Triton, an operation that the compiler does not take), that is
    said once and the network runs as it is.
    """

    def __init__(self, model: VideoNetwork, sizes: Collection[int]) -> None:
        self._model = model
        self._sizes = frozenset(sizes)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._works: bool | None = None  # until it was tried

    def __call__(self, clips: Tensor) -> Tensor:
        logits: Tensor
        if self._works is not False and len(clips) in self._sizes:
            try:
                logits = self._attempt(clips) if self._compiled is None else self._compiled(clips)
            except RuntimeError as error:
                # What is wrong with the clips or the network shows again below, where memory would not suffice either.
                if self._works or isinstance(error, torch.OutOfMemoryError):
                    raise
                self._works = False
                reason = " ".join((str(error).strip() or repr(error)).splitlines()[:2])  # the first may be a heading
                _log.warning(
                    "the network cannot be compiled here and is trained as it is, more slowly (%s); "
                    "training.compile=false leaves the attempt out",
                    reason,
                )
            else:
                self._works = True
                return logits
        logits = self._model(clips)
        return logits

    def _attempt(self, clips: Tensor) -> Tensor:
        import torch._functorch.config as functorch

        self._compiled = compile_static(self._model.forward)
        # The backward pass is compiled now rather than when it runs, so that an attempt shows whether both work.
        with functorch.patch(force_non_lazy_backward_lowering=True):
            return self._compiled(clips)
