"""One training step: pixels to loss, on Lightning."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clipwise.config import Config
from clipwise.data.failures import FailureAccount
from clipwise.data.labels import LabelSpace
from clipwise.data.transforms import ColourAugment, Normalise
from clipwise.models.network import VideoNetwork
from clipwise.training.schedule import learning_rate

__all__ = ["ClassificationTask", "DivergedError"]


class DivergedError(ValueError):
    """The loss, the gradient or the weights are no numbers any more."""


class ClassificationTask(pl.LightningModule):
    """Cross-entropy over the classes; of several heads their mean; of label sets the binary one, mean of all classes.

    Args:
        model: the network.
        label_space: what its outputs stand for.
        config: the experiment.
        unreadable: takes note of videos that cannot be read.
        steps_per_epoch: steps of an epoch.
        start: steps that were done before, when a run resumes.
    """

    def __init__(
        self,
        model: VideoNetwork,
        label_space: LabelSpace,
        config: Config,
        unreadable: FailureAccount,
        *,
        steps_per_epoch: int,
        start: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.label_space = label_space
        self.config = config
        self.unreadable = unreadable
        self.steps_per_epoch = steps_per_epoch
        self.step = start
        """Steps done in the whole run."""
        self.normalise = Normalise(config.views.mean, config.views.std)
        augmentation = config.augmentation
        self.colour: nn.Module | None = None
        if augmentation.changes_colour:
            self.colour = ColourAugment(
                augmentation.brightness,
                augmentation.contrast,
                augmentation.saturation,
                augmentation.hue,
                augmentation.greyscale,
            )
        self.short_videos: set[int] = set()
        """Indices of videos with fewer frames than a clip."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; its rate is set at each step."""
        training = self.config.training
        return torch.optim.SGD(
            self.model.parameters(),
            lr=training.effective_lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the rate, and seed what the step draws on the device, so that a resumed run draws the same."""
        rate = learning_rate(self.config.training, self.step, self.steps_per_epoch)
        for group in self.optimizers().param_groups:
            group["lr"] = rate
        torch.manual_seed(self.config.training.seed * 1_000_003 + self.step)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """``clip`` uint8 (N, T, 3, H, W) and ``label`` → the loss; None where nothing could be read.

        A label is (N,); of several heads (N, heads); of label sets (N, C) bool.

        Raises:
            DecodeError: if a video of the batch could not be read and that is to stop.
            TooManyFailuresError: if too many could not.
            DivergedError: if the loss is not finite.
        """
        self.unreadable.add(batch["failures"])
        if "clip" not in batch:
            return None
        few = batch["index"][batch["available"] < self.config.model.num_frames]
        self.short_videos.update(few.tolist())
        clips = batch["clip"] if self.colour is None else self.colour(batch["clip"])
        loss = self._loss(self.model(self.normalise(clips)), batch["label"])
        if not loss.isfinite():
            raise self._diverged(f"the loss became {loss.item()}", self.step + 1)
        return loss

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.label_space.multi_label:
            # In float32, which autocast on a CPU does not see to.
            return nn.functional.binary_cross_entropy_with_logits(logits.float(), label.float())
        of_head = logits.split(self.label_space.sizes, dim=1)
        labels = label.unflatten(0, (len(label), 1)) if label.ndim == 1 else label
        losses = [nn.functional.cross_entropy(part, labels[:, head]) for head, part in enumerate(of_head)]
        return torch.stack(losses).mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises :class:`DivergedError` before a gradient that is not finite spoils the weights."""
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not norm.isfinite():
            raise self._diverged(f"the gradient's norm became {norm.item()}", self.step + 1)

    def check_sound(self, batch: dict[str, Any]) -> None:
        """See that the weights still give numbers, before they take the place of good ones.

        Raises:
            DivergedError: if the logits of ``batch`` are not finite.
        """
        if "clip" not in batch:
            return
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                logits = self.model(self.normalise(batch["clip"]))
        finally:
            self.model.train(was_training)
        if not logits.isfinite().all():
            raise self._diverged("the network's output became infinite or no number", self.step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        training = self.config.training
        return DivergedError(
            f"{what} at step {step} (epoch {(step - 1) // self.steps_per_epoch + 1}); what was saved before is kept; "
            f"lower training.lr (now {training.effective_lr:g} for {training.batch_size} clips), set "
            "training.gradient_clip, or add training.warmup_epochs"
        )
