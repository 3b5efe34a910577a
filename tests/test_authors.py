"""The rivals of the speed benchmark are the networks that they stand for: our weights, our outputs, our gradients."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import clipwise

NETWORKS = ("tsn", "tsm", "tam", "stm", "stc", "stc_light", "stw")


@pytest.fixture(scope="module")
def authors() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "authors", Path(__file__).resolve().parents[1] / "benchmarks/authors.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(module: str, depth: int, **options: object) -> clipwise.models.network.VideoNetwork:
    """A tiny network in which nothing is at its start: a shift's taps, a BatchNorm's scale, a gate."""
    model = clipwise.create_model(
        f"{module}_resnet{depth}", num_classes=5, num_frames=4, base_width=16, dropout=0.0, **options
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
        model.fc.weight.normal_(generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand(buffer.shape, generator=generator)
    return model


@pytest.mark.parametrize(("depth", "formulation"), [(18, "as_written"), (50, "as_written"), (18, "channels_last")])
@pytest.mark.parametrize("module", NETWORKS)
def test_the_authors_formulation_gives_our_outputs_and_gradients(
    authors: ModuleType, module: str, depth: int, formulation: str
) -> None:
    # In double precision: BatchNorm over the few pixels that are left at the end magnifies rounding.
    model = ours(module, depth).double()
    rival = getattr(authors, formulation)(model)
    assert rival.state_dict().keys() == model.state_dict().keys()
    clips = torch.randn(2, 4, 3, 36, 44, dtype=torch.float64)  # odd maps in the later stages
    for training in (False, True):
        model.train(training)
        rival.train(training)
        expected, found = model(clips), rival(clips)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.nn.functional.cross_entropy(expected, torch.tensor([0, 3])).backward()
    torch.nn.functional.cross_entropy(found, torch.tensor([0, 3])).backward()
    gradients = dict(model.named_parameters())
    for name, parameter in rival.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-9, msg=name)
    statistics = dict(model.named_buffers())
    for name, buffer in rival.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize("module", NETWORKS)
def test_the_outputs_agree_in_single_precision(authors: ModuleType, module: str) -> None:
    model = ours(module, 50).eval()
    clips = torch.randn(2, 4, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(clips), authors.as_written(model)(clips)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_layout_is_the_one_that_is_named(authors: ModuleType) -> None:
    model = ours("stm", 18).eval()
    clips = torch.randn(1, 4, 3, 32, 32)
    written, last = authors.as_written(model), authors.channels_last(model)
    assert written.layer1[0].conv2.weight.is_contiguous()
    assert last.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []
    written.layer2[0].conv2.register_forward_hook(lambda _, inputs, out: seen.append(out.is_contiguous()))
    with torch.no_grad():
        written(clips)
    assert seen == [True]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("stm", {"fusion": "concatenation"}),
        ("stm", {"spatial_conv": "channelwise"}),
        ("tsn", {"temporal_pooling": True}),
        ("gst", {}),
    ],
)
def test_a_variant_without_a_formulation_is_refused(
    authors: ModuleType, module: str, options: dict[str, object]
) -> None:
    frames = {"num_frames": 8} if "temporal_pooling" in options else {"num_frames": 4}
    model = clipwise.create_model(f"{module}_resnet50", num_classes=5, base_width=16, **frames, **options)
    with pytest.raises(ValueError, match=r"authors' formulation is here|no formulation of the authors'"):
        authors.as_written(model)
