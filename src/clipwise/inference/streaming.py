"""A network over a stream: one frame in, the logits of what has been seen so far out.

Two kinds of network, one call:

- A **causal** network computes each frame once. What its operations over time read of earlier frames is the state
  (:mod:`clipwise.memory`), so that a frame costs what it costs in an image network. The consensus at frame t is the
  mean of the logits of the last min(t, T) frames, which is what the network says of the clip that ends there; a clip
  longer than T means the same as its stream. Frame t's own logits answer sooner to what begins.
- Any other network sees a **sliding window** [STM-J section 4.6]: the state holds the last T-1 frames, and each frame
  is classified with them, exactly as the network classifies that clip. Of a ResNet, what a frame gives before it meets
  another (stem, and whatever stands before the first operation over time; of TSN everything) is computed once and kept;
  of other families the pictures are. Before T frames there are, the first is repeated.

[STM-J] is Wang et al., *Learning spatiotemporal and motion features in a unified 2D network for action recognition*.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipwise.compiling import compile_frozen
from clipwise.inference.deploy import Deployed, ends_in_mean, record
from clipwise.memory import Memory, check_kept, check_number, laid_out
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
        model: a network, or a deployed one, which is several times as fast. It stays as it is; parameters are shared,
            until the Stream is moved to another device or dtype.
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
                "consensus=False (--no-consensus) takes a frame's own logits, and this network is not causal: what it "
                "says belongs to a window of frames; leave it out, or train the network with causal=True"
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
            self._compiled = compile_frozen(self._step)
            self._run = self._translated
        if cuda_graph:
            self._run = _Recorded(self._run, self._begun)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Refuse to train.

        Raises:
            ValueError: for ``mode=True``.
        """
        if mode:
            raise ValueError("a Stream cannot be trained; train the network it was made of, whose parameters it shares")
        return self

    def _apply(self, *args: Any, **options: Any) -> Self:
        if self._run != self._step:
            raise ValueError(
                "a Stream that compiles or records stays where and in the dtype in which it was made; move the network "
                "it was made of, and make a Stream of that"
            )
        # With parameters of its own: the caller's network stays where it is.
        self.network = copy.deepcopy(self.network, {id(self._memory): self._memory})
        super()._apply(*args, **options)
        self.dtype = next(self.network.parameters()).dtype
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self._run != self._step:
            raise TypeError(
                "a Stream that compiles or records can be neither copied nor pickled: what it compiled and recorded "
                "belongs to this process; make a Stream of the same network instead"
            )
        return self.__dict__

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
        single = frames.ndim == 4
        logits, after = self._alone(self._run, frames[:, None] if single else frames, state)
        return (logits[:, 0] if single else logits), after

    def _alone(self, function: Callable[..., Any], frames: Tensor, *others: Any) -> Any:
        if self._at_work:
            raise ValueError("this Stream is computing a step in another thread; make one for each thread")
        self._at_work = True
        try:
            with _without_autocast(frames.device.type):  # the dtype was chosen already
                return function(frames, *others)
        finally:
            self._at_work = False

    @torch.no_grad()
    def initial_state(self, streams: int, height: int, width: int) -> State:
        """The state of so many streams that have not begun, for pictures of this size.

        Raises:
            ValueError: for pictures that are too small, or while a step is computed.
        """
        device = next(self.network.parameters()).device
        pictures = torch.zeros(1, 1, 3, height, width, device=device).expand(streams, -1, -1, -1, -1)
        state: State = self._alone(self._begun, pictures)
        return state

    def _begun(self, frames: Tensor) -> State:
        """The state before the first of such frames (N, t, 3, H, W). Neither compiled nor recorded: where a recording
        keeps its state, another one may live."""
        kept = self._step(torch.zeros_like(frames[:1, :1]), None)[1]
        return tuple(laid_out(part.new_zeros(frames.shape[0], *part.shape[1:])) for part in kept)

    @staticmethod
    def reset(state: Sequence[Tensor], streams: Sequence[int] | Tensor) -> State:
        """A state in which these streams, by their numbers or a mask (N,), have not begun."""
        begins = torch.zeros(state[0].shape[0], dtype=torch.bool, device=state[0].device)
        begins[streams if isinstance(streams, Tensor) else list(streams)] = True
        # Not by a product, which would leave what is not finite.
        return tuple(part.masked_fill(begins.reshape(-1, *[1] * (part.ndim - 1)), 0) for part in state)

    def _translated(self, frames: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, State]:
        # To a compiler None and each layout of a state is another program.
        compiled: tuple[Tensor, State] = self._compiled(
            frames, self._begun(frames) if state is None else tuple(map(laid_out, state))
        )
        return compiled

    def _step(self, frames: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, State]:
        count = frames.shape[1]
        self._memory.begin(state, frames)
        logits = self._causal(frames.to(self.dtype)) if self.causal else self._sliding(frames.to(self.dtype))
        return logits.float(), self._memory.end(count)

    def _causal(self, frames: Tensor) -> Tensor:
        """(N, t, 3, H, W) → (N, t, num_classes)."""
        network = self.network
        features = network.forward_features(frames)
        each: Tensor = network.fc(self._for_head(features) if self._mean_first else network.dropout(features))
        if not self.consensus:
            return each
        mean = running_mean(each.float()[..., None, None], self.num_frames, memory=self._memory)
        return mean.flatten(2)

    def _sliding(self, frames: Tensor) -> Tensor:
        """(N, t, 3, H, W) → (N, t, num_classes)."""
        network, count, window = self.network, frames.shape[1], self.num_frames
        # What a frame gives alone is computed of images of any size.
        network.check_clips(frames[:, :1].expand(-1, window, -1, -1, -1))
        windows = []
        for part in network.before_time(fold(frames)):
            seen = self._memory.with_past(unfold(part, count), window - 1, repeat_first=True)
            windows.append(_windows(seen, count, window))
        features = network.over_time(tuple(windows))
        if self._mean_first:
            # The last layer is linear, so the mean of what it makes of the frames is what it makes of their mean.
            logits = network.fc(self._for_head(features).mean(dim=1))
        else:
            logits = network.classify(features)
        return unfold(logits, count)

    def _for_head(self, features: Tensor) -> Tensor:
        # A deployed network's head is in float32 whatever the other layers are in.
        return features.to(self.network.fc.weight.dtype)


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
    has it, and the recording itself writes the new one over the old.

    Args:
        step: (frames, state) → logits and the state after.
        begun: frames → the state before the first of such frames.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, State]], begun: Callable[[Tensor], State]) -> None:
        self.step, self.begun = step, begun
        self.recorded: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, State]] = {}

    def __call__(self, frames: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, State]:
        key = (frames.shape, frames.dtype)
        # Outside inference mode, whose tensors could not be written into by a later call outside of it.
        with torch.cuda.device(frames.device), torch.inference_mode(False), torch.no_grad():
            if key not in self.recorded:
                self.recorded[key] = self._record(frames)
            graph, given, logits, own = self.recorded[key]
            if state is None:
                torch._foreach_zero_(list(own))
            elif len(state) != len(own) or any(mine is not theirs for mine, theirs in zip(own, state, strict=True)):
                check_number(len(state), at_least=len(own), at_most=len(own))
                for number, (mine, theirs) in enumerate(zip(own, state, strict=True)):
                    check_kept(number, theirs, mine.shape, mine.dtype)
                torch._foreach_copy_(list(own), list(state))
            given.copy_(frames)
            graph.replay()
            return logits.clone(), own

    def _record(self, frames: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, State]:
        given, state = frames.clone(), self.begun(frames)

        def step() -> Tensor:
            logits, after = self.step(given, state)
            torch._foreach_copy_(list(state), list(after))
            return logits

        graph, logits = record(step)
        return graph, given, logits, state
