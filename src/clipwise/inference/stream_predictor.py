"""From pictures, one after the other, to what they show so far."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipwise.checkpoint import Checkpoint, read_checkpoint
from clipwise.data.transforms import Normalise, crop_resize, evaluation_boxes
from clipwise.evaluation.metrics import mean_scores
from clipwise.inference.calibration import read_temperature
from clipwise.inference.deploy import deploy
from clipwise.inference.streaming import Stream
from clipwise.models.network import channels_last

__all__ = ["Pace", "StreamPredictor", "load_stream"]


class StreamPredictor:
    """A trained network over a stream of pictures; made by :func:`load_stream`.

    Args:
        checkpoint: what was trained.
        device: where it runs, ``"cpu"`` or ``"cuda"``; the GPU when None and there is one.
        precision: in which the layers compute.
        temperature: by which logits are divided before they become scores; when None, what ``clipwise calibrate`` left
            beside these weights, or else 1.
        consensus: of a causal network, whether the scores after a picture are those of the mean over the last T, or
            that picture's own, which answer sooner and are less steady.

    Attributes:
        classes: a name for each of the network's outputs.
        num_frames: T.
        causal: whether the network keeps a state and computes each picture once; otherwise each is classified together
            with the T-1 before it.
        size: pixels of the square that the network sees.

    Raises:
        ValueError: for a temperature that is not above 0 and finite, or ``consensus=False`` and a network that is not
            causal.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        temperature: float | None = None,
        consensus: bool = True,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.temperature = temperature if temperature is not None else read_temperature(checkpoint.weights) or 1.0
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature divides the logits and must be above 0 and finite, got {temperature}")
        self.label_space = checkpoint.label_space
        self.classes = checkpoint.classes
        self.num_frames = checkpoint.config.num_frames
        self.size = checkpoint.views.size
        self._crop_ratio = checkpoint.views.crop_ratio
        self._normalise = Normalise(checkpoint.views.mean, checkpoint.views.std).to(self.device)
        model = channels_last(checkpoint.model.to(self.device))
        deployed = deploy(model, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        self._stream = Stream(deployed, cuda_graph=self.device.type == "cuda", consensus=consensus)
        self.causal = self._stream.causal
        self._state: tuple[Tensor, ...] | None = None

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) RGB uint8 → (3, size, size) uint8: the middle crop that the network is tested with.

        It touches nothing of the stream, and may run in another thread.

        Raises:
            TypeError, ValueError: for something else than such a picture.
        """
        if picture.ndim != 3:
            raise ValueError(f"a picture is (H, W, 3), got {picture.shape}")
        height, width = picture.shape[:2]
        (box,) = evaluation_boxes(height, width, crops=1, ratio=self._crop_ratio)
        return crop_resize(picture[None], box, self.size)[0]

    def push(self, pictures: Tensor) -> NDArray[np.float32]:
        """(t, 3, size, size) uint8, the stream's next pictures in order → (t, classes) scores after each of them: every
        head's softmax, or the sigmoid where a video has a set of labels.

        Several at once give what they give one by one, and take less time.

        Raises:
            ValueError: for logits that are not finite.
        """
        frames = self._normalise(pictures.to(self.device, non_blocking=True)[None])
        logits, self._state = self._stream(frames, self._state)
        scores: NDArray[np.float32] = mean_scores(logits[0, :, None] / self.temperature, self.label_space).cpu().numpy()
        return scores

    def reset(self) -> None:
        """Forget what was seen: the next picture begins a stream."""
        self._state = None


def load_stream(
    path: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: str | torch.device | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    temperature: float | None = None,
    consensus: bool = True,
) -> StreamPredictor:
    """Load a folder that ``clipwise train`` wrote, for a stream.

    Args:
        path: the folder, or one weight file inside it.
        which: ``best`` or ``last`` weights.
        device, precision, temperature, consensus: see :class:`StreamPredictor`.

    Raises:
        ValueError: if it is no such folder or its parts do not belong together, or for what these refuse.
    """
    checkpoint = read_checkpoint(path, which=which)
    return StreamPredictor(checkpoint, device=device, precision=precision, temperature=temperature, consensus=consensus)


class Pace:
    """Which pictures of a source the network looks at: one in ``stride``, or ``rate`` a second; all of them if neither
    is said.

    A network sees motion at the spacing that it was trained with: one trained on T frames spread over four seconds is
    to see T / 4 pictures a second.

    Args:
        stride: pictures from one that is looked at to the next.
        rate: pictures a second, by their times; a source with fewer gives all that it has.

    Raises:
        ValueError: for both, or a value out of range.
    """

    def __init__(self, *, stride: int | None = None, rate: float | None = None) -> None:
        if stride is not None and rate is not None:
            raise ValueError(f"stride counts pictures and rate seconds; give one of them, got {stride = }, {rate = }")
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"rate must be above 0 pictures a second, got {rate}")
        self._stride, self._period = stride or 1, None if rate is None else 1 / rate
        self._count = 0
        self._due: float | None = None

    def takes(self, seconds: float) -> bool:
        """Whether the network looks at the next picture, whose time this is; to be asked of every picture in order."""
        if self._period is None:
            self._count += 1
            return (self._count - 1) % self._stride == 0
        # Containers round times to milliseconds and cameras are not punctual: a little before its time is on time.
        if self._due is not None and self._due - 2 * self._period < seconds < self._due - self._period / 4:
            return False
        on_time = self._due is not None and abs(seconds - self._due) < self._period
        self._due = (self._due if on_time and self._due is not None else seconds) + self._period
        return True
