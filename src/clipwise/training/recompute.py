"""Memory for time: what a block computes inside is computed once more in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipwise.models.network import VideoNetwork

__all__ = ["recompute_blocks"]


def recompute_blocks(model: VideoNetwork) -> None:
    """Let each of ``model.blocks()`` keep its input alone for the backward pass, in place.

    Loss, gradients and running statistics are what they were, and so are names and state dict. Evaluation, and a
    forward pass without gradients, do not change. Chen et al., *Training deep nets with sublinear memory cost*, 2016.
    """
    for block in model.blocks():
        # On the block itself, not around it: a module around it would change the keys of the state dict.
        block.forward = partial(_recomputed, block)


def _recomputed(block: nn.Module, *inputs: Any, **options: Any) -> Tensor:
    forward = partial(type(block).forward, block, **options)
    out: Tensor
    if not (block.training and torch.is_grad_enabled()):
        out = forward(*inputs)
    elif torch.compiler.is_compiling():
        # The compiler updates the statistics once, after the whole graph, however often a node is computed.
        out = checkpoint(forward, *inputs, use_reentrant=False)
    else:
        out = checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))
    return out


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_kept(block)


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Let what is computed inside write into copies of the block's buffers: BatchNorm's running statistics and its
    count of batches have seen this batch already."""
    own = [(module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)]
    for module, name, buffer in own:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            setattr(module, name, buffer)
