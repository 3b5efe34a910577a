"""A deployed network gives what the trained one gives, for every family, and refuses what it cannot do."""

import copy
import pickle
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from test_temporalize import ImageResNet
from torch import Tensor, nn

import clipwise
from clipwise.checkpoint import write_weights
from clipwise.compiling import compile_frozen, compile_static, compiler_missing
from clipwise.inference.deploy import _Readers
from clipwise.inference.fused import FusedBottleneck, fuse_block
from clipwise.models.network import VideoNetwork
from clipwise.models.registry import list_models, model_entry, model_options
from clipwise.models.resnet import ResNet

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
KEPT = {"eco": 6, "eco_lite": 6}  # BNs that stand before their convolution


def trained(name: str, num_frames: int | None = None, **options: Any) -> VideoNetwork:
    """A narrow network whose BNs do something, and whose logits are far from zero."""
    torch.manual_seed(1)
    narrow = {"base_width": 16} if "base_width" in model_options(name) else {}
    frames = num_frames or min(8, model_entry(name).num_frames)
    return normalising(clipwise.create_model(name, num_classes=5, num_frames=frames, **narrow, **options))


def normalising(model: VideoNetwork) -> VideoNetwork:
    for module in model.modules():
        if isinstance(module, NORMS):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(model.fc.weight)
    return model.eval()


def clips_for(model: VideoNetwork, batch: int = 2) -> Tensor:
    """Odd maps, and other sizes than those by which the network was rewritten."""
    return torch.randn(batch, model.num_frames, 3, model.min_size + 33, model.min_size + 12)


def difference(model: VideoNetwork, deployed: nn.Module, clips: Tensor) -> float:
    with torch.no_grad():
        expected = model(clips)
    found = deployed(clips)
    assert found.dtype == torch.float32
    return float((found - expected).abs().max() / expected.abs().max())


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(part, NORMS) for part in module.modules())


def one_of_each() -> list[str]:
    """Every module and every family; of ResNets the two kinds of block."""
    return [name for name in list_models() if not name.endswith(("resnet34", "resnet101", "resnet152", "x3d_l"))]


@pytest.mark.parametrize("name", one_of_each())
def test_every_network_gives_what_it_gave(name: str) -> None:
    model = trained(name)
    before = copy.deepcopy(model.state_dict())
    deployed = clipwise.deploy(model)
    assert difference(model, deployed, clips_for(model)) < 2e-5
    module = name.rpartition("_")[0]
    assert norms_in(deployed) == KEPT.get(module, 0) < norms_in(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["tsn_resnet50", "stm_resnet50", "stc_resnet50", "stw_resnet18", "i3d_inception_v1"])
def test_half_precision(name: str) -> None:
    model = trained(name, 8)
    assert difference(model, clipwise.deploy(model, dtype=torch.bfloat16), clips_for(model)) < 2e-2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("module", ["tsm", "tam", "stm", "stc", "stc_light", "stw"])
def test_causal_and_two_sided(module: str, causal: bool) -> None:
    model = trained(f"{module}_resnet50", 4, causal=causal, caffe_stride=True)
    assert difference(model, clipwise.deploy(model), clips_for(model)) < 2e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stm_resnet50", {"modules": "cstm"}),
        ("stm_resnet50", {"modules": "cmm"}),
        ("stm_resnet50", {"fusion": "concatenation"}),
        ("stm_resnet50", {"degenerate": True}),
        ("stm_resnet50", {"temporal_conv": "ordinary", "motion_conv": "ordinary"}),
        ("stm_resnet50", {"spatial_conv": "channelwise"}),
        ("stm_resnet18", {"modules": "cmm"}),
        ("stm_resnet50", {"temporal_pooling": True}),
        ("stm_resnet50", {"nonlocal_blocks": True}),
        ("stw_resnet50", {"modules": "stfm"}),
        ("tsn_resnet50", {"temporal_pooling": "average"}),
        ("i3d_resnet50", {"squeeze_excitation": True}),
    ],
)
def test_variants(name: str, options: dict[str, Any]) -> None:
    model = trained(name, 8, **options)
    assert difference(model, clipwise.deploy(model), clips_for(model)) < 2e-5


@pytest.mark.parametrize("fusion", ["sum", "concatenation"])
def test_restore_within_conv3_is_exact(fusion: str) -> None:
    """The form for GPUs: conv3 takes s and the reduced difference, or where it is pooled m, side by side."""
    model = trained("stm_resnet50", 4, fusion=fusion)
    assert isinstance(model, ResNet)
    for block in model.blocks():
        for module in block.modules():
            if isinstance(module, NORMS):  # BN is another test's concern
                module.reset_running_stats()
                module.reset_parameters()
                module.eps = 1e-12  # torch before 2.13 takes no 0
        x = torch.randn(8, block.conv1.in_channels, 9, 7).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = block(x, 4)
            for part in ("bn1", "bn2", "bn3"):
                setattr(block, part, nn.Identity())
            fused = fuse_block(block, for_gpu=True)
            assert isinstance(fused, FusedBottleneck)
            assert fused.wide == (fusion == "concatenation" or block.conv2.stride == (1, 1))
            assert fused.conv3.weight.shape[1] % 8 == 0
            found = fused(x.clone(memory_format=torch.preserve_format), 4)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_packed_weights_serve_every_size_of_input() -> None:
    model = trained("stm_resnet50", 4)
    deployed = clipwise.deploy(model)
    for side, batch in ((64, 1), (95, 3), (64, 2), (33, 1)):
        clips = torch.randn(batch, 4, 3, side, side)
        assert difference(model, deployed, clips) < 2e-5
        contiguous_apart = clips.transpose(3, 4).contiguous().transpose(3, 4)
        assert torch.equal(deployed(contiguous_apart), deployed(clips))


def test_without_onednn() -> None:
    model = trained("stm_resnet50", 4)
    with torch.backends.mkldnn.flags(enabled=False):
        assert difference(model, clipwise.deploy(model), clips_for(model)) < 2e-5


class Averaged(nn.Module):
    """A network of the user's own, a BN behind something that only looks like a convolution's output."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.between = between
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.norm = self.bn  # one layer of two names
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.between == "without the bias":
            y = nn.functional.conv2d(x, self.conv.weight, None, padding=1)
        elif self.between == "by keywords":
            y = nn.functional.conv2d(input=x, weight=self.conv.weight, bias=self.conv.bias, padding=1)
        else:
            y = self.conv(x)
        if self.between == "written into":
            y[:, :2] = 0
        elif self.between == "looked at":
            self.largest = float(y.abs().max())
        return self.fc(self.norm(y).relu().mean((2, 3)))


class AveragedClips(VideoNetwork):
    def __init__(self, between: str) -> None:
        super().__init__(num_classes=5, num_frames=4)
        self.images = Averaged(between)
        self.fc = self.images.fc

    def forward(self, clips: Tensor) -> Tensor:
        return self.images(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


@pytest.mark.parametrize(
    ("between", "folded"),
    [("nothing", 1), ("without the bias", 0), ("by keywords", 0), ("written into", 0), ("looked at", 0)],
)
def test_what_is_not_surely_a_convolutions_bn_stays(between: str, folded: int) -> None:
    model = normalising(AveragedClips(between))
    deployed = clipwise.deploy(model)
    assert norms_in(deployed) == 1 - folded
    assert difference(model, deployed, clips_for(model)) < 2e-5


def test_weights_that_are_computed_anew_at_each_pass_are_nobodys() -> None:
    """Each is a tensor of its own, which another may follow in the same place."""
    for name in ("tsn_resnet18", "stm_resnet50"):
        model = trained(name, 4)
        for place, layer in list(model.named_modules()):
            if isinstance(layer, nn.Conv2d) and not place.endswith("conv2"):  # after which a block looks for its type
                nn.utils.parametrizations.weight_norm(layer)
        assert set(_Readers(model).owners) <= set(map(id, model.parameters()))
        deployed = clipwise.deploy(model)
        assert norms_in(deployed) > norms_in(clipwise.deploy(trained(name, 4)))
        assert difference(model, deployed, clips_for(model)) < 2e-5


class OneSize(nn.Module):
    """An image network of a fixed size inside, like those that end in a flattened map."""

    def __init__(self, map_size: int) -> None:
        super().__init__()
        self.images = ImageResNet((1, 1, 1, 1))
        channels = self.images.fc.in_features
        self.images.avgpool = nn.Identity()
        self.images.fc = nn.Linear(channels * map_size**2, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.images(x).relu())


def test_a_network_that_takes_one_size_alone() -> None:
    model = normalising(clipwise.temporalize(OneSize(7), "tsm", num_classes=5, num_frames=2))
    deployed = clipwise.deploy(model)
    assert norms_in(deployed) < norms_in(model)
    assert difference(model, deployed, torch.randn(1, 2, 3, 224, 224)) < 2e-5
    strange = AveragedClips("nothing")
    strange.images.conv.register_forward_pre_hook(lambda _, given: given[0].reshape(-1, 3, 100, 100))
    with pytest.raises(ValueError, match=r"no clips of 64×64 or 224×224 pixels.*use it as it is"):
        clipwise.deploy(strange)


def test_a_network_that_has_diverged_is_named_so() -> None:
    model = trained("tsn_resnet18", 4)
    model.layer2[0].conv1.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"has diverged.*layer2.0.conv1.weight holds such values; take weights from"):
        clipwise.deploy(model)


def test_hooks_and_layers_of_the_users_own_stay() -> None:
    looked_at = trained("stm_resnet50", 4)
    seen: list[Tensor] = []
    looked_at.layer1[0].conv1.register_forward_hook(lambda *given: seen.append(given[2].std()))
    changed = trained("stm_resnet50", 4)
    changed.layer2[0].register_forward_hook(lambda *given: given[2] * 0.5)
    other_norm = trained("tsn_resnet18", 4)
    other_norm.layer1[0].bn1 = nn.GroupNorm(4, 16)
    other_head = trained("tsn_resnet18", 4)
    other_head.fc = nn.Sequential(nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 5))
    for model in (looked_at, changed, other_norm, other_head):
        assert difference(model, clipwise.deploy(model), clips_for(model)) < 2e-5
    assert seen


def test_a_network_that_changes_from_pass_to_pass_is_refused() -> None:
    model = trained("tsn_resnet18", 4)
    model.layer1[0].register_forward_hook(lambda *given: given[2] * torch.rand(()))
    with pytest.raises(ValueError, match="logits that differ by"):
        clipwise.deploy(model)


def test_under_autocast_and_inference_mode() -> None:
    model = trained("stm_resnet18", 4)
    deployed, clips = clipwise.deploy(model), clips_for(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = deployed(clips)
    assert inside.dtype == torch.float32
    assert torch.equal(deployed(clips), inside)


def test_a_network_that_temporalize_made() -> None:
    """Modules hang on its BNs by hooks, and those stay."""
    for module in ("stm", "tsm", "stw"):
        for basic in (False, True):
            image = ImageResNet((2, 2, 1, 1), basic=basic)
            model = normalising(clipwise.temporalize(image, module, num_classes=5, num_frames=4))
            deployed = clipwise.deploy(model)
            assert norms_in(deployed) < norms_in(model)
            assert difference(model, deployed, clips_for(model)) < 2e-5


@pytest.mark.skipif(bool(compiler_missing("cpu")), reason="no C++ compiler")
def test_compiled() -> None:
    model = trained("stm_resnet18", 4)
    assert difference(model, clipwise.deploy(model, compile=True), clips_for(model)) < 1e-4


@pytest.mark.skipif("isolate_recompiles" not in signature(torch.compile).parameters, reason="this torch cannot")
@torch.no_grad()
def test_any_number_of_networks_of_a_class_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        programs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    layers = [Widened(width) for width in range(1, 12)]
    for layer in layers:
        compile_static(layer)(torch.randn(2, 4))
    assert len(programs) == len(layers)


class Widened(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


@pytest.mark.skipif(bool(compiler_missing("cpu")), reason="no C++ compiler")
@torch.no_grad()
def test_a_compiled_networks_weights_are_constants() -> None:
    """A program that looked at them anew would see that they change."""
    layer = torch.nn.Conv2d(3, 4, 3)
    pixels = torch.randn(1, 3, 8, 8)
    compiled = compile_frozen(layer)
    before = compiled(pixels)
    layer.weight.zero_()
    torch.testing.assert_close(compiled(pixels), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name", ["tsn_resnet18", "tsm_resnet18", "tam_resnet18", "stm_resnet18", "stc_resnet18", "stw_resnet18"]
)
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"cuda_graph": True},
        {"with_kernels": True},
        {"with_kernels": True, "cuda_graph": True},
        {"compile": True},
        {"with_kernels": True, "compile": True},
        {"with_kernels": True, "compile": True, "cuda_graph": True},
    ],
    ids="+".join,
)
def test_every_form_on_a_gpu(name: str, form: dict[str, bool]) -> None:
    """In bf16, at its first clips and at later ones, which a recording replays."""
    model = trained(name, 4)
    clips = [clips_for(model) for _ in range(2)]
    with torch.no_grad():
        expected = [model(each) for each in clips]
    deployed = clipwise.deploy(copy.deepcopy(model).cuda(), dtype=torch.bfloat16, **form)
    for each, wanted in zip(clips, expected, strict=True):
        found = deployed(each.cuda()).cpu()
        assert (found - wanted).norm() / wanted.norm() < 2e-2


def test_without_a_compiler_it_says_so_and_runs(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("clipwise.inference.deploy.compiler_missing", lambda device: "no compiler here; install g++")
    model = trained("tsn_resnet18", 4)
    deployed = clipwise.deploy(model, compile=True)
    assert "no compiler here; install g++" in caplog.text
    assert not deployed.compiled
    assert difference(model, deployed, clips_for(model)) < 2e-5


def test_refused(tmp_path: Path) -> None:
    model = trained("tsn_resnet18", 4)
    deployed = clipwise.deploy(model)
    with pytest.raises(ValueError, match="cannot be trained"):
        deployed.train()
    assert not deployed.eval().training
    with pytest.raises(ValueError, match="move the network it was made of"):
        deployed.to(torch.bfloat16)
    with pytest.raises(TypeError, match="save the network it was made of"):
        pickle.dumps(deployed)
    with pytest.raises(ValueError, match=r"no checkpoint.*save the network it was made of"):
        write_weights(deployed, tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="deployed already"):
        clipwise.deploy(deployed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Linear"):
        clipwise.deploy(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be"):
        clipwise.deploy(model, dtype=torch.float64)
    with pytest.raises(ValueError, match="cuda_graph needs a network on a GPU"):
        clipwise.deploy(model, cuda_graph=True)
    with pytest.raises(ValueError, match="made for 4 frames"):
        deployed(torch.randn(1, 8, 3, 64, 64))
