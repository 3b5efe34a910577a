"""One training step: pixels to loss, on Lightning."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from clipwise.config import Config
from clipwise.data.failures import Failure, FailureAccount
from clipwise.data.labels import LabelSpace
from clipwise.data.transforms import ColourAugment, Normalise
from clipwise.models.network import VideoNetwork
from clipwise.processes import Processes
from clipwise.training.compiling import CompiledNetwork
from clipwise.training.mixing import mix
from clipwise.training.optimiser import kept_batch_norms, parameter_groups, rate_factors
from clipwise.training.schedule import learning_rate
from clipwise.training.twins import correlation_loss

__all__ = ["ClassificationTask", "DivergedError"]


class DivergedError(ValueError):
    """The loss, the gradient or the weights are no numbers any more."""


class ClassificationTask(pl.LightningModule):
    """Cross-entropy over the classes; of several heads their mean; of label sets the binary one, mean of all classes.

    With ``training.twins`` the mean of both augmentations', and λ times the correlation loss between them (eq. 10 of
    :mod:`clipwise.training.twins`), of several heads the mean of theirs: classes of different heads, a verb and its
    noun, may well go together. Label smoothing ε gives each head's target the share 1 − ε and all its classes ε
    together; of a label set each class's answer, which is yes or no, 1 − ε/2 instead of 1.

    A step's loss is the mean over the clips that all processes read for it, however they are divided among processes
    and ``training.accumulate`` parts, and so is its gradient, to rounding. What BatchNorm computes is each process's
    and part's own; what is drawn on the device, each process's.

    Args:
        model: the network.
        label_space: what its outputs stand for.
        config: the experiment.
        unreadable: takes note of videos that cannot be read.
        steps_per_epoch: steps of an epoch.
        start: steps that were done before, when a run resumes.
        processes: those that train together.
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
        processes: Processes,
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
        self.processes = processes
        self.compiled: CompiledNetwork | None = None
        """What computes a step's logits in the model's place."""
        self.clips = 0
        """That all processes read for the step."""
        self.loss = 0.0
        """Their mean loss, once the step's gradients are there."""
        self._losses: list[tuple[Tensor, int]] = []
        """Of this process's parts: mean loss, on the device, and clips."""
        self.failures: list[Failure] = []
        """Of all processes in the step."""
        self.short_videos: set[int] = set()
        """Indices of videos with fewer frames than a clip."""
        self.rate = 0.0
        """The learning rate of the step, before a parameter's own factor."""
        self.factors = rate_factors(model, config.training)
        self.group_factors = [group.factor for group in parameter_groups(model, self.factors, config.training)]
        # Names, not modules: synchronised BatchNorms take the place of the network's own.
        self.kept_norms = kept_batch_norms(model, config.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.factors[name] > 0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, with a group for each factor on the rate and each weight decay; the rates are set at each step."""
        training = self.config.training
        groups = parameter_groups(self.model, self.factors, training)
        return torch.optim.SGD(
            [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
            lr=training.effective_lr,
            momentum=training.momentum,
            nesterov=training.nesterov,
            # On a GPU the fused step reads and writes half as much memory as torch's own choice there, and needs no
            # second copy of the gradients. On a CPU it takes as long as the plain one (ResNet-50: 25 ms), whose last
            # bits earlier runs had.
            fused=True if self.device.type == "cuda" else None,
        )

    def compile_network(self) -> None:
        """From now on, compute the steps of as many clips as a whole batch's parts have with a compiled network."""
        share, parts = self.config.training.batch_size // self.processes.count, self.config.training.accumulate
        self.compiled = CompiledNetwork(self.model, {share // parts * self._copies, -(-share // parts) * self._copies})

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the rates, and seed what the step draws on the device, so that a resumed run draws the same.

        BatchNorms that keep their statistics are put into evaluation mode here, at each step, for whoever validates
        in between puts all of the network into training mode.
        """
        self.rate = learning_rate(self.config.training, self.step, self.steps_per_epoch)
        for group, factor in zip(self.optimizers().param_groups, self.group_factors, strict=True):
            group["lr"] = self.rate * factor
        for name in self.kept_norms:
            self.model.get_submodule(name).eval()
        # Processes lie far apart in the 32 bits of a seed that the CPU's generator takes; it leaves the others.
        apart = self.processes.rank * (2**32 // self.processes.count)
        torch.manual_seed(self.config.training.seed * 1_000_003 + self.step + apart)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: :meth:`training_step` begins with it, for Lightning would do it after the first parts' gradients."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """``clip`` uint8 (N, T, 3, H, W) and ``label`` → the loss to follow back; None where nothing could be read.

        Twins are (N, 2, T, 3, H, W). A label is (N,); of several heads (N, heads); of label sets (N, C) bool. Of
        several parts all but the last have been followed back already.

        Raises:
            DecodeError: if a video of the batch could not be read and that is to stop.
            TooManyFailuresError: if too many could not.
        """
        self.optimizers().zero_grad()
        own = len(batch["label"]) if "label" in batch else 0
        clips, failed = zip(*self.processes.exchange(own, len(batch["failures"])), strict=True)
        self.clips, self.loss, self._losses = int(sum(clips)), 0.0, []
        of_processes = self.processes.gather(batch["failures"]) if any(failed) else []
        self.failures = [failure for of_process in of_processes for failure in of_process]
        self.unreadable.add(self.failures)
        training, several = self.config.training, self.processes.count
        if training.sync_batch_norm and several > 1 and min(clips) < training.accumulate:
            raise ValueError(
                f"a process has {min(clips):g} clips of step {self.step + 1}, and training.sync_batch_norm needs at "
                f"least {training.accumulate} in each; take another training.batch_size, or leave sync_batch_norm out"
            )
        if not self.clips and several == 1:
            return None
        loss = self._none() if not own else None
        for part, targets in self._parts(batch) if own else ():
            if loss is not None:
                with torch.autocast(self.device.type, enabled=False):
                    loss.backward()
            logits = (self.compiled or self.model)(part)
            mean = torch.stack([share * self._loss(logits, labels) for share, labels in targets]).sum()
            twins = training.twins_lambda * self._correlation(logits) if training.twins else torch.zeros_like(mean)
            clips_of_part = len(logits) // self._copies
            # Gradients are averaged over the processes, and the correlation's is made for that.
            loss = mean * (clips_of_part * several / self.clips) + twins
            self._losses.append(((mean + twins).detach(), clips_of_part))
        assert loss is not None
        return loss

    def _parts(self, batch: dict[str, Any]) -> Iterator[tuple[Tensor, list[tuple[float, Tensor]]]]:
        """The batch's parts: normalised clips (n, T, 3, H, W), and targets with the share that each has in the loss."""
        few = batch["index"][batch["available"] < self.config.model.num_frames]
        self.short_videos.update(few.tolist())
        training = self.config.training
        clips, labels = self._as_one_batch(batch["clip"]), batch["label"].repeat_interleave(self._copies, 0)
        clips = self.normalise(clips if self.colour is None else self.colour(clips))
        targets = [(1.0, labels)]
        if training.mixup or training.cutmix:
            clips, partner, share = mix(clips, training, copies=self._copies)
            targets = [(share, labels), (1 - share, labels[partner])]
        shares, every = zip(*targets, strict=True)
        for part, *some in zip(self._divided(clips), *map(self._divided, every), strict=True):
            yield part, list(zip(shares, some, strict=True))

    def _divided(self, batch: Tensor) -> Sequence[Tensor]:
        """The rows that go through the network together; of an epoch's last clips there may be fewer than parts."""
        return batch.tensor_split(min(self.config.training.accumulate, len(batch)))

    def _none(self) -> Tensor:
        """The loss of a process without a clip: 0, and it takes part in what the others do with gradients."""
        zero = torch.stack([(parameter * 0).sum() for parameter in self.model.parameters() if parameter.requires_grad])
        if not self.config.training.twins:
            return zero.sum()
        no_logits = zero.sum().expand(2, sum(self.label_space.sizes))[:0]
        return self.config.training.twins_lambda * self._correlation(no_logits)

    def _correlation(self, logits: Tensor) -> Tensor:
        of_heads = [
            correlation_loss(part[::2], part[1::2], self.config.training.twins_beta)
            for part in logits.split(self.label_space.sizes, dim=1)
        ]
        return torch.stack(of_heads).mean()

    @property
    def _copies(self) -> int:
        return 2 if self.config.training.twins else 1

    def _as_one_batch(self, clips: Tensor) -> Tensor:
        """(N, T, 3, H, W) as it is; twins (N, 2, T, 3, H, W) → (2N, T, 3, H, W), the two of a clip side by side."""
        return clips.flatten(0, 1) if self.config.training.twins else clips

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        smoothing = self.config.training.label_smoothing
        if self.label_space.multi_label:
            # In float32, which autocast on a CPU does not see to.
            target = label.float() * (1 - smoothing) + smoothing / 2
            return nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
        of_head = logits.split(self.label_space.sizes, dim=1)
        labels = label.unflatten(0, (len(label), 1)) if label.ndim == 1 else label
        losses = [
            nn.functional.cross_entropy(part, labels[:, head], label_smoothing=smoothing)
            for head, part in enumerate(of_head)
        ]
        return torch.stack(losses).mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients' norm, and see that loss and gradients are sound before they go into the weights.

        Here a step waits for the device: loss and norm are fetched together, when all is computed. Clipping
        is done here rather than by Lightning, which would compute the norm again and takes no fused optimiser.

        Raises:
            DivergedError: if the loss or the gradients' norm is not finite.
        """
        if not self.clips:  # no process read any: the weights stay
            optimizer.zero_grad()
            return
        learning = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
        *means, length = torch.stack([*(mean.float() for mean, _ in self._losses), norm]).tolist()
        loss_sum = sum(mean * clips for mean, (_, clips) in zip(means, self._losses, strict=True))
        self.loss = sum(of_process for (of_process,) in self.processes.exchange(loss_sum)) / self.clips
        if not math.isfinite(self.loss):
            raise self._diverged(f"the loss became {self.loss}", self.step + 1)
        if not math.isfinite(length):
            raise self._diverged(f"the gradient's norm became {length}", self.step + 1)
        if self.config.training.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(learning, self.config.training.gradient_clip, norm)

    def check_sound(self, batch: dict[str, Any]) -> None:
        """See that the weights still give numbers, before they take the place of good ones.

        Raises:
            DivergedError: if the logits of ``batch``, or another process's, are not finite.
        """
        finite = True
        if "clip" in batch:
            was_training = self.model.training
            self.model.eval()
            try:
                with torch.inference_mode():
                    parts = self._divided(self._as_one_batch(batch["clip"]))
                    finite = all(bool(self.model(self.normalise(part)).isfinite().all()) for part in parts)
            finally:
                self.model.train(was_training)
        if not all(of_process for (of_process,) in self.processes.exchange(finite)):
            raise self._diverged("the network's output became infinite or no number", self.step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        training = self.config.training
        return DivergedError(
            f"{what} at step {step} (epoch {(step - 1) // self.steps_per_epoch + 1}); what was saved before is kept; "
            f"lower training.lr (now {training.effective_lr:g} for {training.batch_size} clips), set "
            "training.gradient_clip, or add training.warmup_epochs"
        )
