"""Rates by part of the network, kept BatchNorms, label smoothing, mixup and cutmix: each does what it says."""

import copy
import csv
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from test_training import Interrupt
from test_twins import SPACES, batch_of, step, task_of
from torch import Tensor, nn
from torch.nn import functional as F

import clipwise
from clipwise.config import Config, TrainingConfig, load_config
from clipwise.data.labels import LabelSpace
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model, list_models, model_entry
from clipwise.training.mixing import cutmix_box, mix
from clipwise.training.optimiser import kept_batch_norms, parameter_groups, rate_factors

CLASSES = LabelSpace.of(("a", "b", "c"))
STILL = ["training.momentum=0", "training.weight_decay=0", "training.gradient_clip=null", "model.options.dropout=0"]


def small() -> VideoNetwork:
    return create_model("tsn_resnet18", num_classes=3, num_frames=4, base_width=16)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "last.safetensors")


def start_of(config: Config) -> dict[str, Tensor]:
    """What the run's network starts from."""
    torch.manual_seed(config.training.seed)
    model = create_model(config.model.name, num_classes=4, num_frames=4, **config.model.options)
    return {key: value.clone() for key, value in model.state_dict().items()}


# Rates


def test_by_default_there_is_one_group_of_all_parameters_in_their_order() -> None:
    model = small()
    [(factor, _, group)] = parameter_groups(model, rate_factors(model, TrainingConfig()), TrainingConfig())
    assert factor == 1
    assert all(one is other for one, other in zip(group, model.parameters(), strict=True))


def test_normalisations_may_have_a_weight_decay_of_their_own() -> None:
    model = small()
    training = TrainingConfig(weight_decay=0.1, norm_weight_decay=0, lr_factors={"fc": 5})
    groups = parameter_groups(model, rate_factors(model, training), training)
    assert [(group.factor, group.weight_decay) for group in groups] == [(1.0, 0.1), (1.0, 0), (5.0, 0.1)]
    of_norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    assert {id(parameter) for parameter in groups[1].parameters} == of_norms
    assert {id(parameter) for parameter in groups[2].parameters} == {id(model.fc.weight), id(model.fc.bias)}


def test_nesterov_looks_ahead(videos: Path, tmp_path: Path) -> None:
    """Its first step is 1 + momentum times the plain one."""
    once = [*SMALL, "training.epochs=1", "training.batch_size=16", "training.weight_decay=0", "training.lr=0.001"]
    moved = []
    for name, more in (("plain", []), ("nesterov", ["training.nesterov=true"])):
        clipwise.train(videos, tmp_path / name, overrides=[*once, *more])
        config = load_config(None, [*once, *more])
        moved.append(weights_of(tmp_path / name)["fc.bias"] - start_of(config)["fc.bias"])
    torch.testing.assert_close(moved[1], 1.9 * moved[0])


def test_the_longest_prefix_of_whole_parts_gives_the_factor() -> None:
    with torch.device("meta"):
        model = create_model("tsn_mobilenet_v2", num_classes=3)
    factors = rate_factors(model, TrainingConfig(lr_factors={"": 0.5, "features.1": 2.0, "features.1.conv.0": 3.0}))
    assert {value for name, value in factors.items() if name.startswith("features.1.conv.0.")} == {3.0}
    assert {value for name, value in factors.items() if name.startswith("features.1.conv.1")} == {2.0}
    assert {value for name, value in factors.items() if name.startswith("features.10.")} == {0.5}
    assert factors["fc.weight"] == 0.5


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("layer5", "begins with 'layer5'; near it: layer4, layer3, layer2"),
        ("layer1.0.con1", r"near it: layer1\.0\.conv1"),
        ("bn1.running_mean", "near it: bn1.*"),
        ("nothing at all", "names begin with conv1, bn1, layer1, layer2, layer3, layer4, fc"),
    ],
)
def test_a_prefix_that_fits_nothing_is_refused(prefix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rate_factors(small(), TrainingConfig(lr_factors={prefix: 2.0}))


def test_a_network_of_which_nothing_may_learn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr_factors=\{'': 0\.0\} .* leave no parameter to train"):
        rate_factors(small(), TrainingConfig(lr_factors={"": 0.0}))


def test_a_part_learns_at_its_rate_and_the_log_shows_the_common_one(videos: Path, tmp_path: Path) -> None:
    once = [*SMALL, *STILL, "training.epochs=1", "training.batch_size=16", "data.validation_split=none"]
    factors = "training.lr_factors={layer1: 0.5, fc: 3}"
    clipwise.train(videos, tmp_path / "plain", overrides=once)
    clipwise.train(videos, tmp_path / "factors", overrides=[*once, factors])
    start = start_of(load_config(None, once))
    plain, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "factors")
    for key, factor in {"layer1.0.conv1.weight": 0.5, "fc.weight": 3.0, "layer2.0.conv1.weight": 1.0}.items():
        torch.testing.assert_close(other[key] - start[key], factor * (plain[key] - start[key]), rtol=1e-3, atol=1e-6)
    with (tmp_path / "plain/epochs.csv").open() as one, (tmp_path / "factors/epochs.csv").open() as two:
        assert [row["lr"] for row in csv.DictReader(one)] == [row["lr"] for row in csv.DictReader(two)]


def test_a_frozen_part_stays_as_it_was_statistics_and_all(videos: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, "training.lr_factors={conv1: 0, bn1: 0, layer1: 0}"]
    clipwise.train(videos, tmp_path / "run", overrides=overrides)
    start, trained = start_of(load_config(None, overrides)), weights_of(tmp_path / "run")
    same = {key for key, value in trained.items() if torch.equal(value, start[key])}
    frozen = {key for key in trained if key.startswith(("conv1.", "bn1.", "layer1."))}
    assert frozen <= same
    assert not {key for key in same - frozen if key.endswith(("conv1.weight", "running_mean", "fc.weight"))}


def test_a_run_with_several_rates_resumes_as_if_never_stopped(videos: Path, tmp_path: Path) -> None:
    overrides = [
        *SMALL,
        "training.lr_factors={fc: 5, layer1: 0}",
        "training.layer_decay=0.7",
        "training.batch_norm=partial",
        "training.mixup=0.5",
        "training.cutmix=1",
        "training.label_smoothing=0.1",
    ]
    clipwise.train(videos, tmp_path / "whole", overrides=overrides)
    assert not clipwise.train(videos, tmp_path / "run", overrides=overrides, reporter=Interrupt(2)).finished
    clipwise.train(None, tmp_path / "run", resume=True)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_layer_decay_counts_stages_from_the_head() -> None:
    factors = rate_factors(small(), TrainingConfig(layer_decay=0.5, lr_factors={"layer3": 3.0}))
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 3 * 0.25, "layer2": 0.125, "layer1": 0.0625}
    expected |= {"conv1": 0.03125, "bn1": 0.03125}
    assert {name.partition(".")[0]: factor for name, factor in factors.items()} == expected


FAMILIES = [name for name in list_models() if "resnet" not in name or name.endswith(("resnet50", "4x16"))]


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_decay_falls_from_the_head_to_the_first_layer_of_every_network(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3, num_frames=model_entry(name).num_frames)
    factors = rate_factors(model, TrainingConfig(layer_decay=0.5))
    assert factors.keys() == {name for name, _ in model.named_parameters()}
    assert factors["fc.weight"] == factors["fc.bias"] == 1
    stages = sorted(set(factors.values()))
    assert stages == [0.5**place for place in reversed(range(len(stages)))]
    first = next(name for name, _ in model.named_parameters())
    assert factors[first] == stages[0]
    assert 6 <= len(stages) <= 24


def test_parts_side_by_side_and_temporal_modules_are_no_stages_of_their_own() -> None:
    with torch.device("meta"):
        slowfast = create_model("slowfast_resnet50_4x16", num_classes=3, num_frames=32)
        tsn, tam = (create_model(f"{name}_inception_v1", num_classes=3) for name in ("tsn", "tam"))
    decay = TrainingConfig(layer_decay=0.5)
    factors = rate_factors(slowfast, decay)
    assert factors["slow.layer4.0.conv1.weight"] == factors["fast.layer4.0.conv1.weight"] == 0.5
    assert factors["slow.stem.conv.weight"] == factors["laterals.0.conv.weight"] == 0.5**5
    plain, with_modules = rate_factors(tsn, decay), rate_factors(tam, decay)
    assert with_modules.items() >= plain.items()


# BatchNorm


@pytest.mark.parametrize(("mode", "learning"), [("train", 20), ("partial", 1), ("frozen", 0)])
def test_batch_norms_keep_what_they_started_with_through_epochs_and_validations(
    videos: Path, tmp_path: Path, mode: str, learning: int
) -> None:
    overrides = [*SMALL, "model.name=tsn_resnet18", f"training.batch_norm={mode}"]
    clipwise.train(videos, tmp_path / "run", overrides=overrides)
    config = load_config(None, overrides)
    start, trained = start_of(config), weights_of(tmp_path / "run")
    norms = [key.removesuffix(".running_mean") for key in trained if key.endswith(".running_mean")]
    assert len(norms) == 20
    for norm in norms:
        for name in ("running_mean", "running_var", "weight", "bias"):
            changed = not torch.equal(start[f"{norm}.{name}"], trained[f"{norm}.{name}"])
            assert changed == (learning == 20 or (learning == 1 and norm == "bn1")), (norm, name)
    assert not torch.equal(start["layer3.0.conv1.weight"], trained["layer3.0.conv1.weight"])


def test_a_kept_batch_norm_normalises_by_its_statistics_in_training() -> None:
    config = load_config(None, [*SMALL, *STILL, "training.batch_norm=frozen"])
    task = task_of(config, CLASSES)
    labels = torch.tensor([2, 0, 1])
    clips = torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    before = copy.deepcopy(task.model).eval()
    expected = F.cross_entropy(before(task.normalise(clips)), labels)
    assert step(task, batch_of(clips, labels)) == pytest.approx(expected.item(), rel=1e-5)


def test_batch_norms_of_every_kind_are_found() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2, affine=False), nn.SyncBatchNorm(2))
    assert kept_batch_norms(network, TrainingConfig(batch_norm="frozen")) == ["0", "1", "2", "3"]
    assert kept_batch_norms(network, TrainingConfig(batch_norm="partial")) == ["1", "2", "3"]
    assert kept_batch_norms(network, TrainingConfig(lr_factors={"1": 0.0})) == ["1"]
    assert kept_batch_norms(network, TrainingConfig()) == []


# Targets


def soft_targets(space: LabelSpace, labels: Tensor, smoothing: float) -> list[Tensor]:
    """Each head's targets, written out."""
    if space.multi_label:
        return [labels.float() * (1 - smoothing) + smoothing / 2]
    columns = labels.reshape(len(labels), -1)
    return [
        F.one_hot(columns[:, head], size) * (1 - smoothing) + smoothing / size for head, size in enumerate(space.sizes)
    ]


def loss_with(space: LabelSpace, logits: Tensor, targets: list[Tensor]) -> Tensor:
    if space.multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets[0])
    parts = logits.split(space.sizes, 1)
    losses = [-(target * part.log_softmax(1)).sum(1).mean() for part, target in zip(parts, targets, strict=True)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mixing", ["none", "mixup", "cutmix", "both", "twins"])
@pytest.mark.parametrize("kind", SPACES)
def test_the_loss_is_that_of_soft_targets(kind: str, mixing: str) -> None:
    space, labels = SPACES[kind]
    chosen = {
        "none": [],
        "mixup": ["training.mixup=1"],
        "cutmix": ["training.cutmix=1"],
        "both": ["training.mixup=1", "training.cutmix=1"],
        "twins": ["training.mixup=1", "training.twins=true", "training.twins_lambda=0"],
    }[mixing]
    config = load_config(None, [*SMALL, *STILL, "training.label_smoothing=0.2", *chosen])
    task = task_of(config, space)
    before = copy.deepcopy(task.model).train()
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    copies = 2 if mixing == "twins" else 1
    clips = torch.randint(80, (3, copies, 4, 3, 32, 32), dtype=torch.uint8)
    clips += (torch.arange(3, dtype=torch.uint8) * 80).view(3, 1, 1, 1, 1, 1)  # no two clips share a value
    loss = step(task, batch_of(clips if copies == 2 else clips[:, 0], labels))

    pixels = task.normalise(clips.flatten(0, 1))
    other = pixels.roll(copies, 0)  # each clip's partner, augmentation for augmentation
    kept, taken = seen[0] == pixels, seen[0] == other
    if (kept | taken).all():  # cutmix, or none
        share = float(kept[0, 0, 0].float().mean())
        assert share == 1 or mixing in ("cutmix", "both")
    else:
        share = float(((seen[0] - other) / (pixels - other)).median())
        torch.testing.assert_close(seen[0], share * pixels + (1 - share) * other, atol=1e-5, rtol=1e-5)
        assert mixing in ("mixup", "both", "twins")
    every = labels.repeat_interleave(copies, 0)
    own, partner = (soft_targets(space, of, 0.2) for of in (every, every.roll(copies, 0)))
    targets = [share * a + (1 - share) * b for a, b in zip(own, partner, strict=True)]
    assert loss == pytest.approx(loss_with(space, before(seen[0]), targets).item(), rel=1e-4)


def test_mixed_clips_have_one_partner_and_one_rectangle_in_all_frames() -> None:
    values = torch.arange(5.0).reshape(5, 1, 1, 1, 1)
    clips = values.expand(5, 3, 3, 20, 30)
    for seed in range(30):
        torch.manual_seed(seed)
        cut = mix(clips.clone(), TrainingConfig(cutmix=1.0))
        assert cut.partner.tolist() == [4, 0, 1, 2, 3]
        assert (cut.clips == cut.clips[:, :1, :1]).all()
        assert cut.share == pytest.approx((cut.clips[1, 0, 0] == 1).float().mean().item())
        mixed = mix(clips.clone(), TrainingConfig(mixup=0.4))
        expected = mixed.share * values + (1 - mixed.share) * values[mixed.partner]
        torch.testing.assert_close(mixed.clips, expected.expand_as(clips))


def test_rectangles_lie_in_the_picture_and_are_as_large_as_drawn_unless_cut_off() -> None:
    for share in (0.0, 0.3, 0.9, 0.9999, 1.0):
        boxes = [cutmix_box(40, 60, share) for _ in range(300)]
        side = (1 - share) ** 0.5
        largest = round(40 * side), round(60 * side)
        for top, left, height, width in boxes:
            assert 0 <= top <= top + height <= 40
            assert 0 <= left <= left + width <= 60
            assert (height, width) <= largest
        if 0.05 < side < 0.9:
            assert any((box.height, box.width) == largest for box in boxes)


def test_with_both_either_is_drawn_half_the_time_and_its_weight_from_its_own_distribution() -> None:
    clips = torch.zeros(2, 1, 3, 16, 16)
    clips[1] = 1
    training = TrainingConfig(mixup=0.2, cutmix=1.0)
    mixed = [mix(clips.clone(), training) for _ in range(400)]
    cut = [bool(((one.clips == 0) | (one.clips == 1)).all()) and one.share not in (0, 1) for one in mixed]
    assert 0.35 < sum(cut) / len(cut) < 0.65
    shares = torch.tensor([mix(clips.clone(), TrainingConfig(mixup=0.2)).share for _ in range(400)])
    assert shares.mean() == pytest.approx(0.5, abs=0.1)
    assert ((shares < 0.1) | (shares > 0.9)).float().mean() > 0.6  # Beta(0.2, 0.2) is mostly near either end


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.lr_factors={fc: -1}"], "lr_factors are numbers of at least 0 .* got -1.0 for 'fc'"),
        (["training.lr_factors={fc: .inf}"], "lr_factors .* got inf"),
        (["training.layer_decay=0"], r"layer_decay must lie in \(0, 1\], 1 for none, got 0"),
        (["training.layer_decay=1.1"], "layer_decay .* got 1.1"),
        (["training.label_smoothing=1"], "label_smoothing is a share, from 0 to below 1, got 1"),
        (["training.mixup=-0.1"], "mixup must be a number of at least 0, got -0.1"),
        (["training.cutmix=1", "training.batch_size=1"], "need other clips beside each: raise batch_size, got 1"),
        (["training.twins=true", "training.batch_size=1"], "need other clips beside each"),
        (["training.batch_norm=half"], "batch_norm: .*'train', 'partial' or 'frozen'.* got 'half'"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


def test_factors_can_be_given_on_the_command_line_and_come_back_from_a_run() -> None:
    config = load_config(None, ["training.lr_factors={fc: 5, layer1.0: 0.1}", "training.lr_factors.layer2=0"])
    assert config.training.lr_factors == {"fc": 5.0, "layer1.0": 0.1, "layer2": 0.0}
    assert Config.from_json(config.to_dict()) == config
