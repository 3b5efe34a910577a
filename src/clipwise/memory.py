"""What a network remembers of a stream: the earlier frames that its operations over time read.

In a clip there are zeros before the first frame. In a stream the same operations find there what they kept a step
before, so that a network computes one frame at a time what it would compute of the whole clip. A :class:`Memory`
hands them their frames in the order in which they ask, which is the same at every step, so the state of a stream is a
flat tuple of tensors::

    state = (seen, frames kept by the first operation, by the second, …)

``seen`` (N,) counts the frames of each stream. All tensors have the streams first, and a stream that has not begun is
zero in all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Memory", "check_kept", "check_number", "laid_out"]


class Memory:
    """The state of N streams while a network computes a step.

    Attributes:
        seen: (N,) frames of each stream before this step.
        numbers: (N, t), the numbers of this step's frames in their streams, from 1.
    """

    def __init__(self) -> None:
        self.seen = self.numbers = torch.empty(0)
        self._later: Tensor | None = None
        self._given: Sequence[Tensor] | None = None
        self._kept: list[Tensor] = []

    def begin(self, state: Sequence[Tensor] | None, frames: Tensor) -> None:
        """Begin a step with ``frames`` (N, t, …); a state of None begins N streams.

        Raises:
            ValueError: if the state has no tensor.
        """
        self._kept = []
        if state is None:
            self._given, self.seen = None, torch.zeros(frames.shape[0], dtype=torch.int64, device=frames.device)
        else:
            check_number(len(state), at_least=1)
            self.seen, *self._given = state
        self.numbers = self.seen[:, None] + torch.arange(1, frames.shape[1] + 1, device=self.seen.device)
        self._later = None

    def end(self, frames: int) -> tuple[Tensor, ...]:
        """The state after a step of so many frames.

        Raises:
            ValueError: if the state given has more tensors than were asked for.
        """
        if self._given is not None:
            check_number(len(self._given) + 1, at_most=len(self._kept) + 1)
        state = (self.seen + frames, *self._kept)
        self._given, self._kept = None, []
        return state

    def with_past(self, x_NT: Tensor, frames: int, *, repeat_first: bool = False) -> Tensor:
        """(N, t, …) → (N, frames + t, …), the ``frames`` before them in front; the last ``frames`` are kept.

        Before a stream's first frame there are zeros, or with ``repeat_first`` that frame.

        Raises:
            ValueError: if the state is of another network, or of pictures of another size.
        """
        frames_now = x_NT.shape[1]
        past = self._past(x_NT, frames)
        if repeat_first:
            begins = self._over_channels(self.seen == 0, x_NT)
            past = torch.where(begins[:, None], x_NT[:, :1], past)
        extended = _cat_time(past, x_NT)
        kept = extended[:, frames_now:]
        # As a view it holds on to all of them: of many frames at once much more than is kept.
        self._kept.append(kept.clone() if frames_now > frames or torch.compiler.is_compiling() else kept)
        return extended

    def _past(self, x_NT: Tensor, frames: int) -> Tensor:
        shape = (x_NT.shape[0], frames, *x_NT.shape[2:])
        if self._given is None:
            return x_NT.new_zeros(shape)
        check_number(len(self._given) + 1, at_least=len(self._kept) + 2)
        past = self._given[len(self._kept)]
        check_kept(len(self._kept) + 1, past, shape, x_NT.dtype)
        return past

    def without_first(self, x_NT: Tensor) -> Tensor:
        """(N, t, …) → (N, t, …), zero at each stream's first frame."""
        if self._later is None or self._later.dtype != x_NT.dtype:
            self._later = (self.numbers > 1).to(x_NT.dtype)
        return x_NT * self._over_channels(self._later, x_NT)

    @staticmethod
    def _over_channels(flags: Tensor, x_NT: Tensor) -> Tensor:
        return flags.reshape(*flags.shape, *[1] * (x_NT.ndim - 2))


def check_number(tensors: int, *, at_least: int = 0, at_most: int | None = None) -> None:
    """Refuse a state of fewer or more tensors.

    Raises:
        ValueError: for such a state.
    """
    if tensors < at_least or (at_most is not None and tensors > at_most):
        raise ValueError(f"a state of {tensors} tensors is of another network; begin with None")


def check_kept(number: int, found: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a state's tensor, by its number in it, that is not as the network needs it.

    Raises:
        ValueError: for another shape or dtype.
    """
    if found.shape != tuple(shape) or found.dtype != dtype:
        raise ValueError(
            f"this state is of another network, or of other pictures: tensor {number} is {found.dtype} "
            f"{tuple(found.shape)} where these frames need {dtype} {tuple(shape)}; a change of size or of the number "
            "of streams begins anew, with None"
        )


def laid_out(part: Tensor) -> Tensor:
    """A state's tensor without gaps in memory, the channels innermost as a step leaves them; a view if it is so."""
    if part.ndim != 5:
        return part.reshape(-1).view(part.shape)  # not contiguous(), which leaves any stride where a size is 1
    x_NTHWC = part.permute(0, 1, 3, 4, 2)
    return x_NTHWC.reshape(-1).view(x_NTHWC.shape).permute(0, 1, 4, 2, 3)


def _cat_time(past: Tensor, x_NT: Tensor) -> Tensor:
    if x_NT.ndim != 5:
        return torch.cat((past, x_NT), dim=1)
    # With the channels innermost, as the convolutions around have them; see clipwise.ops.
    return torch.cat((past.permute(0, 1, 3, 4, 2), x_NT.permute(0, 1, 3, 4, 2)), dim=1).permute(0, 1, 4, 2, 3)
