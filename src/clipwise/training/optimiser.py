"""Which parameters learn, and at what rate; which BatchNorms keep their statistics."""

import difflib
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipwise.config import TrainingConfig
from clipwise.models.network import VideoNetwork
from clipwise.models.resnet import TemporalModule
from clipwise.models.slowfast import Lateral

__all__ = ["ParameterGroup", "kept_batch_norms", "parameter_groups", "rate_factors"]

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


class ParameterGroup(NamedTuple):
    """Parameters that are trained alike."""

    factor: float
    """On the learning rate."""
    weight_decay: float
    parameters: list[nn.Parameter]


def rate_factors(model: VideoNetwork, training: TrainingConfig) -> dict[str, float]:
    """The factor on the learning rate of each parameter, by name: ``lr_factors`` times ``layer_decay``.

    0 is for parameters that stay as they are: by ``lr_factors``, or as scale and shift of a BatchNorm that
    ``batch_norm`` keeps.

    ``layer_decay`` d gives the head 1, the last stage d, the one before it d² … Stages are the parts with parameters
    that ``model.stages()`` lists. A temporal module or a normalisation that stands between two parts belongs to the
    one before it, and SlowFast's pathways and lateral connections share their stages.

    Raises:
        ValueError: if ``lr_factors`` names what the network does not have, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in training.lr_factors:
        if not any(_begins(name, prefix) for name in names):
            raise ValueError(_unknown(prefix, names))
    levels = _levels(model)
    last = max(levels.values())
    kept = {f"{module}.{name}" for module in kept_batch_norms(model, training) for name in ("weight", "bias")}
    factors = {
        name: 0.0
        if name in kept
        else _by_prefix(name, training.lr_factors) * training.layer_decay ** (last - levels[name])
        for name in names
    }
    if not any(factors.values()):
        raise ValueError(
            f"training.lr_factors={training.lr_factors} and training.batch_norm={training.batch_norm!r} leave no "
            "parameter to train; give the head a factor above 0, such as {fc: 1}"
        )
    return factors


def parameter_groups(model: nn.Module, factors: Mapping[str, float], training: TrainingConfig) -> list[ParameterGroup]:
    """The parameters that learn, by factor and weight decay, in the order in which the network first has each pair."""
    own = training.weight_decay if training.norm_weight_decay is None else training.norm_weight_decay
    of_norms = {
        parameter for module in model.modules() if isinstance(module, _NORMS) for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if factors[name]:
            decay = own if parameter in of_norms else training.weight_decay
            groups.setdefault((factors[name], decay), []).append(parameter)
    return [ParameterGroup(*key, parameters) for key, parameters in groups.items()]


def kept_batch_norms(model: nn.Module, training: TrainingConfig) -> list[str]:
    """Names of the BatchNorms that keep their statistics: those of ``batch_norm``, and those in a part whose
    ``lr_factors`` is 0, for such a part is to compute what it did before."""
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    learning = {"train": len(norms), "partial": 1, "frozen": 0}[training.batch_norm]
    return [name for place, name in enumerate(norms) if place >= learning or _by_prefix(name, training.lr_factors) == 0]


def _begins(name: str, prefix: str) -> bool:
    """Whether ``prefix`` is the first of the name's parts: "features.1" of "features.1.conv", not of "features.10"."""
    return prefix in ("", name) or name.startswith(f"{prefix}.")


def _by_prefix(name: str, factors: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in factors if _begins(name, prefix)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def _unknown(prefix: str, names: list[str]) -> str:
    beginnings = list(dict.fromkeys(part for name in names for part in accumulate(name.split("."), "{}.{}".format)))
    near = difflib.get_close_matches(prefix, beginnings, n=3, cutoff=0.5)
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return f"training.lr_factors: no parameter's name begins with {prefix!r}; " + (
        f"near it: {', '.join(near)}" if near else f"names begin with {', '.join(tops)}"
    )


def _levels(model: VideoNetwork) -> dict[str, int]:
    """The stage that each parameter belongs to, counted from the first; the head's is the last."""
    levels: dict[nn.Parameter, int] = {}
    level, before = -1, ""
    for name, part in model.stages():
        place = name.rpartition(".")[2]  # slow.layer1 and fast.layer1 run side by side
        parameters = list(part.parameters())
        if not parameters:
            continue
        if place != before and not isinstance(part, TemporalModule | Lateral | _BatchNorm):
            level, before = level + 1, place
        levels |= dict.fromkeys(parameters, level)
    of_name: dict[str, int] = {}
    current = 0
    for name, parameter in model.named_parameters():
        current = levels.get(parameter, current)  # the ResNets' bn1 is in no stage: it goes with conv1
        of_name[name] = current
    return of_name
