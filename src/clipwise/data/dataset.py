"""Clips for training and views for testing: a manifest's videos, sampled, cropped and resized, still uint8.

Every random choice follows from (seed, draw), where draw is the clip's place in the whole run: neither the number of
workers nor an interruption changes what a training step sees.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from clipwise.config import AugmentationConfig, DataConfig, ViewsConfig
from clipwise.data import sampling
from clipwise.data.decode import DecodeError, Frames
from clipwise.data.failures import Failure
from clipwise.data.labels import partner_label
from clipwise.data.manifest import Manifest
from clipwise.data.reversal import reverse, reverse_partners
from clipwise.data.transforms import crop_resize, evaluation_boxes, mirror_labels, train_box

__all__ = ["Draw", "DrawSampler", "Room", "TestViews", "TrainingClips", "collate", "identity_of", "read_views"]


Room: TypeAlias = Callable[[int, int, int], Tensor | None]
"""Where the next clip of T frames of (height, width) is to be written: (T, 3, H, W) uint8; None: anywhere."""


class Draw(NamedTuple):
    """What a training clip is made from."""

    video: int
    """Its index in the manifest."""
    number: int
    """The clip's place in the run, from 0."""


class DrawSampler(Sampler[list[Draw]]):
    """The batches of a run from step ``start`` to its end.

    An epoch is every video once in random order, or, when balanced, as many steps of full batches whose classes are
    drawn with equal probability and whose videos are drawn with replacement. What epoch e holds follows from
    (seed, e) alone.

    Args:
        labels: (V,) class index of each video.
        batch_size, epochs, balanced, seed: as in the configuration.
        start: the first step to yield.
        rank, processes: of each batch, the places rank, rank + processes … are yielded; draws keep their numbers in the
            whole batch, so that a clip is the same however many processes share the batch.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        *,
        batch_size: int,
        epochs: int,
        balanced: bool,
        seed: int,
        start: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rank = rank
        self.processes = processes
        self.labels = labels
        self.batch_size = batch_size
        self.balanced = balanced
        self.seed = seed
        self.start = start
        self.steps_per_epoch = -(-len(labels) // batch_size)
        self.steps = epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        order: NDArray[np.int64] | None = None
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if order is None or position == 0:
                order = self._order(epoch)
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            draws = [Draw(int(index), step * self.batch_size + place) for place, index in enumerate(batch)]
            yield draws[self.rank :: self.processes]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        if not self.balanced:
            return rng.permutation(len(self.labels))
        counts = np.bincount(self.labels)
        weight = 1 / counts[self.labels]
        size = self.steps_per_epoch * self.batch_size
        return rng.choice(len(self.labels), size=size, p=weight / weight.sum())


class TrainingClips(Dataset[dict[str, Any] | Failure]):
    """Training clips, each asked for by its :class:`Draw`.

    With ``twins`` an item has two augmentations of the same frames, each with draws of its own; the first one is what
    the item would be without. Twins have one label: each is mirrored, or played backwards, by its own draw where the
    class stays the same, and both or neither where the class becomes another.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        num_frames: int,
        size: int,
        data: DataConfig,
        augmentation: AugmentationConfig,
        seed: int,
        twins: bool = False,
    ) -> None:
        self.manifest = manifest
        self.size = size
        self.augmentation = augmentation
        self.twins = twins
        self.seed = seed
        self.partners = [mirror_labels(head.classes) for head in manifest.heads] if augmentation.flip else None
        self.reversed = (
            reverse_partners([head.classes for head in manifest.heads], augmentation.reverse_pairs)
            if augmentation.reverse
            else None
        )
        if data.sampling == "dense":
            self.sample = partial(sampling.dense_train, num_segments=num_frames, stride=data.stride, short=data.short)
        elif data.sampling == "tsm":
            self.sample = partial(sampling.segments_train_tsm, num_segments=num_frames)
        else:
            self.sample = partial(sampling.segments_train, num_segments=num_frames)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, draw: Draw) -> dict[str, Any] | Failure:
        """``clip`` uint8 (T, 3, size, size), ``label``, ``index`` and ``available``, the video's frames; or why not.

        With twins ``clip`` is (2, T, 3, size, size).
        """
        return self.item(draw, lambda *_: None)

    def item(self, draw: Draw, room: Room) -> dict[str, Any] | Failure:
        """As ``self[draw]``, the clip written where ``room`` says if nothing is done to it after that."""
        rng = np.random.default_rng([self.seed, 1, draw.number])
        label = self.manifest.labels[draw.video]
        try:
            with self.manifest.open(draw.video) as frames:
                available = frames.num_frames
                pictures = frames.read(self.sample(available, rng=rng))
        except DecodeError as error:
            return failure_of(self.manifest, draw.video, error)
        height, width = pictures.shape[1:3]
        boxes, mirror, backwards = [], [], []
        for _ in range(2 if self.twins else 1):
            boxes.append(
                train_box(
                    height,
                    width,
                    rng,
                    position=self.augmentation.position,
                    scales=self.augmentation.scales,
                    max_distort=self.augmentation.max_distort,
                )
            )
            # Drawn whether or not the class may be mirrored, so that one class's names do not change another's clips.
            mirror.append(rng.random() < 0.5)
            backwards.append(self.reversed is not None and rng.random() < 0.5)
        mirror, label = _decided(mirror, label, self.partners)
        backwards, label = _decided(backwards, label, self.reversed)
        out = None if self.twins or backwards[0] else room(len(pictures), self.size, self.size)
        clips = [
            crop_resize(pictures, box, self.size, mirrored=yes, out=out) for box, yes in zip(boxes, mirror, strict=True)
        ]
        clips = [reverse(clip) if yes else clip for clip, yes in zip(clips, backwards, strict=True)]
        # Stacked so that each frame stays channels-last in memory, as a single clip's does.
        clip = torch.stack([clip.movedim(1, -1) for clip in clips]).movedim(-1, 2) if self.twins else clips[0]
        return {"clip": clip, "label": label, "index": draw.video, "available": available}


def _decided(
    chosen: list[bool], label: NDArray[Any], partners: Sequence[Sequence[int | None]] | None
) -> tuple[list[bool], NDArray[Any]]:
    """Which of one video's clips, of those ``chosen``, are mirrored (or played backwards), and the label that all have.

    None is where the class has no partner. Where the partner is another class, the first clip's draw is all clips'.
    """
    partner = None if partners is None else partner_label(label, partners)
    if partner is None:
        return [False] * len(chosen), label
    if not np.array_equal(partner, label):
        chosen = chosen[:1] * len(chosen)
        label = partner if chosen[0] else label
    return chosen, label


class TestViews(Dataset[dict[str, Any] | Failure]):
    """The views of each video: clips × crops, clip by clip."""

    __test__ = False  # no pytest class

    def __init__(self, manifest: Manifest, *, num_frames: int, views: ViewsConfig) -> None:
        self.manifest = manifest
        self.num_frames = num_frames
        self.views = views

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict[str, Any] | Failure:
        """``clip`` uint8 (clips·crops, T, 3, size, size), ``label``, ``index`` and ``available``; or why not."""
        try:
            with self.manifest.open(index) as frames:
                available = frames.num_frames
                clips = read_views(frames, self.num_frames, self.views, identity=self._identity(index))
        except DecodeError as error:
            return failure_of(self.manifest, index, error)
        return {
            "clip": clips,
            "label": self.manifest.labels[index],
            "index": index,
            "available": available,
        }

    def _identity(self, index: int) -> str:
        item = self.manifest[index]
        return identity_of(item.name, item.start, item.end)


def failure_of(manifest: Manifest, index: int, error: DecodeError) -> Failure:
    """The account of a manifest's video that could not be read."""
    item = manifest[index]
    return Failure(error.path, error.reason, item.start, item.end, item.reversed)


def identity_of(path: str | os.PathLike[str], *segment: float | None) -> str:
    """What random clips of a video follow from: its file's name, wherever that lies, and its segment."""
    return "|".join(
        [os.path.basename(os.path.normpath(path)), *(f"{limit:g}" for limit in segment if limit is not None)]
    )


def read_views(frames: Frames, num_frames: int, views: ViewsConfig, *, identity: str) -> Tensor:
    """The views of one video, uint8 (clips·crops, T, 3, size, size).

    Args:
        frames: the video.
        num_frames: T.
        views: the protocol.
        identity: names the video; random clips follow from it, so that an evaluation repeats.

    Raises:
        DecodeError: if a frame cannot be had.
    """
    indices = _clip_indices(frames.num_frames, num_frames, views, identity)
    # One call for all clips: overlapping clips share frames, and the reader passes through the video once.
    pictures = frames.read(indices.ravel())
    ratio = views.crop_ratio if views.crops == 1 else views.three_crop_ratio
    boxes = evaluation_boxes(*pictures.shape[1:3], crops=views.crops, ratio=ratio)
    clips = [
        crop_resize(pictures[start : start + num_frames], box, views.size)
        for start in range(0, len(pictures), num_frames)
        for box in boxes
    ]
    return torch.stack(clips)


def _clip_indices(available: int, num_frames: int, views: ViewsConfig, identity: str) -> NDArray[np.int64]:
    if views.sampling == "middle":
        return sampling.segments_middle(available, num_frames)[None]
    if views.sampling == "two_clips":
        return sampling.two_clips(available, num_frames)
    if views.sampling == "uniform":
        return sampling.uniform_clips(available, num_frames, views.clips)
    if views.sampling == "random":
        return sampling.random_clips(available, num_frames, views.clips, identity)
    if views.sampling == "slowfast":
        return sampling.slowfast_clips(available, num_frames, views.stride, views.clips)
    return sampling.dense_clips(available, num_frames, views.stride, views.clips, short=views.short)


def collate(
    samples: Sequence[dict[str, Any] | Failure], stack: Callable[[list[Tensor]], Any] = torch.stack
) -> dict[str, Any]:
    """``stack`` what was read; ``failures`` lists the rest. With nothing read, there is no ``clip``."""
    batch: dict[str, Any] = {"failures": [sample for sample in samples if isinstance(sample, Failure)]}
    read = [sample for sample in samples if not isinstance(sample, Failure)]
    if read:
        batch["clip"] = stack([sample["clip"] for sample in read])
        for key in ("label", "index", "available"):
            batch[key] = torch.from_numpy(np.array([sample[key] for sample in read]))
    return batch
