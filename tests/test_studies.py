"""The studies as data: every row builds, its counts are the published ones, and claims speak of rows that exist."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from clipwise.config import Config, load_config, override_views, recipe_names
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import create_model
from clipwise.studies.mini_benchmark import MINI_BENCHMARK, PARAMETERS
from clipwise.studies.study import Variant, find_study, study_names

# Counts that come out of no reading of the papers (SPEC section 2 and the complexity table), and ours instead.
NOT_AS_PRINTED: dict[tuple[str, str], tuple[float | None, float]] = {
    ("stm_convolution", "CSTM channel-wise 1D and 2D"): (12.59, 18.04),
    ("stm_convolution", "CMM channel-wise"): (24.02, 33.03),
    ("stm_convolution", "CMM ordinary"): (24.07, 33.11),
    ("stc_alpha", "C3D"): (46.50, 62.29),
    ("stc_alpha", "P3D"): (27.64, 37.63),
    ("stc_alpha", "alpha 0"): (27.64, 24.68),
    ("accuracy_macs", "TIN"): (None, 32.70),
}


@cache
def options_of(recipe: str | None) -> dict[str, Any]:
    return load_config(recipe).model.options


def config_of(variant: Variant, recipe: str | None, backbone: str) -> Config:
    """A row's configuration: the recipe, then the row's network, options and training."""
    options = {**options_of(recipe), **variant.options}
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    model = variant.model.replace("{backbone}", backbone)
    return load_config(
        recipe,
        [
            f"model.name={model}",
            f"model.options={ {key: value for key, value in wanted.items() if value is not None} }",
            *variant.training,
        ],
    )


@cache
def _built(name: str, num_frames: int, num_classes: int, options: str) -> VideoNetwork:
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes, num_frames=num_frames, **json.loads(options))


def built(config: Config, num_classes: int) -> VideoNetwork:
    """The network of a configuration, without memory for its weights; not to be changed."""
    options = json.dumps(config.model.options, sort_keys=True)
    return _built(config.model.name, config.model.num_frames, num_classes, options)


@cache
def macs_of(model: VideoNetwork, size: int) -> int:
    return count_macs(model, size)


@pytest.mark.parametrize("name", study_names())
def test_rows_build_and_have_the_published_counts(name: str) -> None:
    """On ResNet-50 at 224×224, with the numbers of frames and classes of the paper.

    The tools of STM, STC and STW add about 0.2 G for BN and pooling and print three digits, hence 2.5 %; Deep
    Analysis counts convolutions to the integer.
    """
    exact = name.startswith("da_")
    for variant in find_study(name).variants:
        if name == "da_mini" and variant.label.endswith(("16f", "32f", "64f", "tp")) and len(variant.options) < 3:
            continue  # test_models.py counts all 288 networks; here those of 8 frames, and the one with a special pool
        config = config_of(variant, None, "resnet50")
        override_views(config.views, variant.views)
        model = built(config, 87 if exact else 174)
        millions, gmacs = variant.published.get("M parameters"), variant.published.get("GMACs")
        slack_millions, slack_gmacs = (1e-9, 1e-9) if exact else (0.003, 0.025)
        if (name, variant.label) in NOT_AS_PRINTED:
            millions, gmacs = NOT_AS_PRINTED[name, variant.label]
            slack_millions = slack_gmacs = 0.0005
        if millions is not None:
            assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=slack_millions), variant.label
        if gmacs is not None:
            assert macs_of(model, 224) / 1e9 == pytest.approx(gmacs, rel=slack_gmacs), variant.label


def test_the_mini_benchmark_is_the_published_one(shared: Path) -> None:
    seen = 0
    with (shared / "reference/mini_benchmark.csv").open() as file:
        for row in csv.DictReader(file):
            name, backbone = row["module"], row["backbone"]
            figures = MINI_BENCHMARK[name, backbone, int(row["frames"]), row["temporal_pooling"] == "1"]
            place = ("mini-ssv2", "mini-kinetics", "mini-mit").index(row["dataset"])
            assert figures[place] == float(row["top1"]), row
            if place == 0:
                assert (figures[3], PARAMETERS[name, backbone]) == (int(row["macs"]), int(row["params"])), row
            seen += 1
    assert seen == 3 * len(MINI_BENCHMARK) == 288


@pytest.mark.parametrize("name", study_names())
def test_rows_build_for_rendered_video(name: str) -> None:
    """With the recipe for rendered video, on a narrow ResNet-18 where a row leaves the backbone open."""
    for variant in find_study(name).variants:
        if variant.start is None:
            config = config_of(variant, "synthetic_study", "resnet18")
            assert config.model.weights is None
            built(config, 8)


@pytest.mark.parametrize("name", ["overhead_adl", "da_i3d", "da_placement", "da_sampling_kinetics"])
def test_options_of_a_recipe_that_a_network_lacks(name: str) -> None:
    """``caffe_stride`` concerns bottlenecks: TEA, Inception-v1, SlowFast and ResNet-18 do without."""
    for variant in find_study(name).variants:
        built(config_of(variant, "overhead_adl_tsn", "resnet50"), 6)


@pytest.mark.parametrize("name", study_names())
def test_rows_are_told_apart(name: str) -> None:
    """By label, by folder and by network, training or views; no label holds the comma that separates them."""
    study = find_study(name)
    assert len({variant.label for variant in study.variants}) == len(study.variants)
    assert len({variant.slug for variant in study.variants}) == len(study.variants)
    assert all(variant.slug and "," not in variant.label for variant in study.variants)
    tested = [(study.training_of(variant.label).label, variant.views) for variant in study.variants]
    assert len(set(tested)) == len(tested)


@pytest.mark.parametrize("name", study_names())
def test_claims_and_starts_name_rows(name: str) -> None:
    study = find_study(name)
    labels = [variant.label for variant in study.variants]
    for claim in study.claims:
        assert {claim.better, claim.worse} <= set(labels), claim
        assert claim.better != claim.worse, claim
    assert len({claim.text for claim in study.claims}) == len(study.claims)
    for index, variant in enumerate(study.variants):
        assert variant.start is None or variant.start in labels[:index], variant.label


# What these studies claim, Deep Analysis finds on mini-SSV2; on mini-Kinetics some of it is the other way round.
ON_MINI_SSV2_ALONE = ("da_mini", "da_pooling", "da_aggregation", "da_placement")


@pytest.mark.parametrize("name", study_names())
def test_published_figures_bear_the_claims_out(name: str) -> None:
    """An order that is claimed is that of the printed figures: a slip in either would show."""
    study = find_study(name)
    for claim in study.claims:
        better, worse = study.variant(claim.better).published, study.variant(claim.worse).published
        keys = [key for key in better.keys() & worse.keys() if key.endswith(("top-1", "accuracy"))]
        if name in ON_MINI_SSV2_ALONE:
            keys = ["mini-SSV2 top-1"]
        for key in keys:
            assert better[key] >= worse[key], (claim, key)


def test_table_5_of_deep_analysis_is_as_printed() -> None:
    """To the digit that it prints; the authors' tables have most of it with more digits, and another S3D."""
    study = find_study("da_aggregation")
    networks = ("none", "I3D", "Conv.", "TAM", "none", "I3D", "Conv.", "TAM", "TSM", "NLN")
    labels = [f"{'Inception-v1' if place < 4 else 'ResNet'} {name}" for place, name in enumerate(networks)]
    printed = {
        ("mini-SSV2", 8): (33.1, 56.4, 58.2, 59.7, 33.9, 62.6, 61.6, 65.4, 64.1, 53.0),
        ("mini-SSV2", 16): (34.7, 61.8, 63.7, 63.9, 35.3, 66.2, 65.7, 68.6, 67.4, 55.0),
        ("mini-Kinetics", 8): (70.4, 68.1, 68.3, 68.8, 72.1, 73.3, 71.5, 74.1, 74.1, 73.7),
        ("mini-Kinetics", 16): (70.5, 70.9, 70.7, 70.0, 72.5, 75.5, 73.4, 76.4, 75.6, 74.5),
    }
    for (data, frames), row in printed.items():
        for label, figure in zip(labels, row, strict=True):
            published = study.variant(f"{label} {frames}f").published[f"{data} top-1"]
            assert published == pytest.approx(figure, abs=0.08), (label, frames)  # 75.57 is printed as 75.5


@pytest.mark.parametrize("name", study_names())
def test_rows_differ_as_they_say_whatever_the_recipe(name: str) -> None:
    """What one row sets in training, all set: a recipe with dense clips, or with Twins, changes no other row's name."""
    fields = [{override.partition("=")[0] for override in row.training} for row in find_study(name).variants]
    indifferent = {"model.weights", "data.stride"}  # a start that there is; the stride of dense clips alone
    assert all(own - indifferent == fields[0] - indifferent for own in fields)


def test_studies_of_certain_videos_name_their_recipe() -> None:
    named = {name: study.recipe for name in study_names() if (study := find_study(name)).recipe}
    assert named == {name: name for name in ("overhead_adl", "overhead_adl_reversed", "handwash12")}
    assert set(named) <= set(recipe_names())


def test_rows_that_differ_in_testing_share_a_training() -> None:
    study = find_study("da_clips")
    trainings = {study.training_of(variant.label).label for variant in study.variants}
    assert trainings == {"I3D uniform 1", "I3D dense 1", "SlowFast uniform 1", "SlowFast dense 1"}
    progressive = find_study("da_mini")
    assert all(progressive.training_of(variant.label) is variant for variant in progressive.variants)


def test_progressive_rows_start_from_half_the_frames() -> None:
    def frames(variant: Variant) -> int:
        (override,) = variant.training
        return int(override.removeprefix("model.num_frames="))

    for name in ("da_mini", "da_aggregation"):
        study = find_study(name)
        for variant in study.variants:
            if variant.start is None:
                assert frames(variant) == 8
            else:
                before = study.variant(variant.start)
                assert frames(before) * 2 == frames(variant)
                assert before.model == variant.model


def test_an_unknown_study_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="near it: stm_modules"):
        find_study("stm_module")
    with pytest.raises(ValueError, match="no study is called 'nothing'; there are stm_modules"):
        find_study("nothing")
    with pytest.raises(ValueError, match="stm_modules has no variant 'SMT'; it has TSN, CMM"):
        find_study("stm_modules").variant("SMT")
