"""The learning rate as a function of the step."""

import math

from clipwise.config import TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """The rate in force at a step, counted from 0 over the whole run.

    ``cosine`` falls to 0 over the run, step by step; ``steps`` divides by 10 at each milestone. In the warm-up it
    rises linearly from 0 to the full rate.
    """
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.effective_lr * min(1.0, (step + 1) / (config.warmup_epochs * steps_per_epoch))
    if config.schedule == "cosine":
        whole = config.epochs - config.warmup_epochs
        return config.effective_lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / whole))
    passed = sum(milestone <= int(epoch) for milestone in config.milestones)
    return config.effective_lr * 0.1**passed
