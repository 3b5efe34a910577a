"""A network over a stream: one frame in, the logits of what has been seen so far out.

Two kinds of network, one call:

- A **causal** network computes each frame once. What its operations over time read of earlier frames is the state
  (:mod:`clipwise.memory`), so that a frame costs what it costs in an image network. The consensus at frame t is the
  mean of the logits of the last min(t, T) frames, which is what the network says of the clip that ends there; a clip
  longer than T means the same as its stream. Frame t's own logits answer sooner to what begins.
- Any other network sees a **sliding window** [STM-J section 4.6]: the state holds the last T-1 frames, and each frame
  is classified with them, exactly as the network classifies that clip. What a frame gives before it meets another
  (stem, and whatever stands before the first operation over time; of TSN everything) is computed once and kept. Before
  T frames there are, the first is repeated.

[STM-J] is Wang et al., *Learning spatiotemporal and motion features in a unified 2D network for action recognition*.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clipwise.inference.deploy import Deployed, ends_in_mean
from clipwise.memory import Memory
from clipwise.models.network import VideoNetwork
from clipwise.models.temporal.layers import Remembering
from clipwise.ops import fold, running_mean, unfold

__all__ = ["Stream"]

State = tuple[Tensor, ...]


class Stream(nn.Module):
    """A network over streams, its state given and returned::

        stream = clipwise.Stream(clipwise.deploy(model))
        state = None
        for frame in frames:                      # (N, 3, H, W): N streams side by side
            logits, state = stream(frame, state)  # (N, num_classes)

    The state is a flat tuple of tensors, each with the streams first and zero for a stream that has not begun, so that
    it can be saved, moved, sliced by stream and exported. One thread at a time may call a Stream; others make their
    own, which shares the parameters.

    Args:
        model: a network, or a deployed one, which is several times as fast. It stays as it is; parameters are shared.
        cuda_graph: record a step's kernels once for each shape of input and replay them. The state that a call returns
            is then the recording's own and holds until the next call. GPUs only.
        consensus: of a causal network, whether the logits after a frame are the mean over the last T, or that frame's.

    Attributes:
        causal: whether it is the network that remembers; otherwise a window slides.
        num_frames: T.
        num_classes: C.

    Raises:
        TypeError: for something else than a network.
        ValueError: for ``cuda_graph`` and a network that is not on a GPU, or ``consensus=False`` and one that is not
            causal.
    """

    def __init__(self, model: VideoNetwork | Deployed, *, cuda_graph: bool = False, consensus: bool = True) -> None:
        super().__init__()
        if not isinstance(model, VideoNetwork | Deployed):
            raise TypeError(
                f"a Stream takes a network of clipwise.create_model, temporalize or deploy, got {type(model).__name__}"
            )
        network = model.network if isinstance(model, Deployed) else model
        parameter = next(network.parameters())
        if cuda_graph and parameter.device.type != "cuda":
            raise ValueError(
                f"cuda_graph needs a network on a GPU, and this one is on {parameter.device}; leave it out, or move it"
            )
        if not (consensus or network.causal):
            raise ValueError(
                "consensus=False takes a frame's own logits, and this network is not causal: what it says of a frame "
                "belongs to the window around; leave it out, or train the network with causal=True"
            )
        self.consensus = consensus
        self.network = _copy_sharing_parameters(network).eval()
        self.dtype = model.dtype if isinstance(model, Deployed) else parameter.dtype
        self.causal = network.causal
        self.num_frames, self.num_classes = network.num_frames, network.num_classes
        self._memory = Memory()
        self._at_work = False
        self._mean_first = ends_in_mean(network)
        if self.causal:
            for module in self.network.modules():
                if isinstance(module, Remembering):
                    module.memory = self._memory
        self._run: Callable[..., tuple[Tensor, State]] = self._step
        if isinstance(model, Deployed) and model.compiled:
            self._run = torch.compile(self._run, dynamic=False)
        if cuda_graph:
            self._run = _Recorded(self._run)
        super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor, state: Sequence[Tensor] | None = None) -> tuple[Tensor, State]:
        """(N, 3, H, W) float → (N, num_classes) float32 logits and the state after; or several frames of each stream
        at once, (N, t, 3, H, W) → (N, t, num_classes), which is the same as one after the other.

        A state of None begins N streams.

        Raises:
            ValueError: for frames of another shape, a state of another network or of pictures of another size, or a
                second call while one is at work.
        """
        if frames.ndim not in (4, 5) or frames.shape[-3] != 3 or 0 in frames.shape:
            raise ValueError(
                f"expected frames of shape (N, 3, H, W), or several of each stream (N, t, 3, H, W), got "
                f"{tuple(frames.shape)}"
            )
        if self._at_work:
            raise ValueError("this Stream is computing a step in another thread; make one for each thread")
        single = frames.ndim == 4
        self._at_work = True
        try:
            with _without_autocast(frames.device.type):  # the dtype was chosen already
                logits, after = self._run(frames[:, None] if single else frames, state)
        finally:
            self._at_work = False
        return (logits[:, 0] if single else logits), after

    def initial_state(self, streams: int, height: int, width: int) -> State:
        """The state of so many streams that have not begun, for pictures of this size."""
        parameter = next(self.network.parameters())
        picture = torch.zeros(1, 3, height, width, dtype=self.dtype, device=parameter.device)
        return tuple(part.new_zeros(streams, *part.shape[1:]) for part in self(picture)[1])

    @staticmethod
    def reset(state: Sequence[Tensor], streams: Sequence[int] | Tensor) -> State:
        """A state in which these streams, by their numbers or a mask (N,), have not begun."""
        begun = torch.ones(state[0].shape[0], dtype=torch.bool, device=state[0].device)
        begun[streams if isinstance(streams, Tensor) else list(streams)] = False
        return tuple(part * begun.reshape(-1, *[1] * (part.ndim - 1)).to(part.dtype) for part in state)

    def _step(self, frames: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, State]:
        count = frames.shape[1]
        self._memory.begin(state, frames)
        logits = self._causal(frames.to(self.dtype)) if self.causal else self._sliding(frames.to(self.dtype))
        return logits.float(), self._memory.end(count)

    def _causal(self, frames: Tensor) -> Tensor:
        """(N, t, 3, H, W) → (N, t, num_classes)."""
        network = self.network
        features = network.forward_features(frames)
        each: Tensor = network.fc(features.float() if self._mean_first else network.dropout(features))
        if not self.consensus:
            return each
        mean = running_mean(each.float()[..., None, None], self.num_frames, memory=self._memory)
        return mean.flatten(2)

    def _sliding(self, frames: Tensor) -> Tensor:
        """(N, t, 3, H, W) → (N, t, num_classes)."""
        network, count, window = self.network, frames.shape[1], self.num_frames
        windows = []
        for part in network.before_time(fold(frames)):
            seen = self._memory.with_past(unfold(part, count), window - 1, repeat_first=True)
            windows.append(_windows(seen, count, window))
        features = network.over_time(tuple(windows))
        if self._mean_first:
            # The last layer is linear, so the mean of what it makes of the frames is what it makes of their mean.
            logits = network.fc(features.float().mean(dim=1))
        else:
            logits = network.classify(features)
        return unfold(logits, count)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    # Where only shapes are computed, as for counting MACs, there is no autocast.
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _windows(x_NT: Tensor, count: int, window: int) -> Tensor:
    """(N, window - 1 + count, …) → (N·count, window, …): copies, for the network may write into what it is given."""
    over_channels = x_NT.ndim == 5
    if over_channels:  # the channels stay innermost; see clipwise.ops
        x_NT = x_NT.permute(0, 1, 3, 4, 2)
    windows = fold(torch.stack([x_NT[:, first : first + window] for first in range(count)], dim=1))
    return windows.permute(0, 1, 4, 2, 3) if over_channels else windows


def _copy_sharing_parameters(network: VideoNetwork) -> VideoNetwork:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class _Recorded:
    """A step's kernels, recorded once for each shape of frames and replayed after. The state stays where the recording
    has it, and the recording itself writes the new one over the old."""

    def __init__(self, step: Callable[..., tuple[Tensor, State]]) -> None:
        self.step = step
        self.recorded: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, State]] = {}

    def __call__(self, frames: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, State]:
        key = (frames.shape, frames.dtype)
        # Outside inference mode, whose tensors could not be written into by a later call outside of it.
        with torch.cuda.device(frames.device), torch.inference_mode(False), torch.no_grad():
            if key not in self.recorded:
                self.recorded[key] = self._record(frames)
            graph, given, logits, own = self.recorded[key]
            given.copy_(frames)
            if state is None:
                torch._foreach_zero_(list(own))
            elif any(mine is not theirs for mine, theirs in zip(own, state, strict=True)):
                torch._foreach_copy_(list(own), list(state))
            graph.replay()
            return logits.clone(), own

    def _record(self, frames: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, State]:
        given = frames.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what compiles, tunes or allocates at a first call must not be recorded
            state = tuple(part.contiguous() for part in self.step(given, None)[1])
            for _ in range(2):
                self.step(given, state)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits, after = self.step(given, state)
            torch._foreach_copy_(list(state), list(after))
        return graph, given, logits, state
