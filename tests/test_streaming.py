"""A stream gives, frame by frame, what its network gives of the clip that ends there."""

import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from conftest import PATIENCE
from test_deploy import trained
from test_temporalize import ImageResNet
from torch import Tensor, nn
from torch._dynamo.utils import counters

import clipwise
from clipwise import Stream
from clipwise.compiling import compiler_missing
from clipwise.inference import streaming
from clipwise.models.complexity import count_macs
from clipwise.models.network import VideoNetwork

CAUSAL = [
    ("tsm_resnet18", {}),
    ("tam_resnet18", {}),
    ("stm_resnet18", {"modules": "cstm"}),
    ("stm_resnet50", {"modules": "cmm"}),
    ("stm_resnet18", {}),
    ("stm_resnet50", {}),
    ("stm_resnet50", {"fusion": "concatenation", "temporal_conv": "ordinary"}),
    ("stm_resnet18", {"stages": (4, 5)}),
    ("stm_resnet18", {"degenerate": True}),
    ("stc_resnet18", {}),
    ("stc_light_resnet50", {}),
    ("stc_resnet18", {"shift": False}),
    ("stw_resnet50", {}),
    ("stw_resnet18", {"modules": "twm_stfm"}),
    ("stw_resnet18", {"fusion": "average"}),
    ("tsm_mobilenet_v2", {}),
]
IDS = [f"{name}{''.join(f' {key}={value}' for key, value in options.items())}" for name, options in CAUSAL]
TWO_SIDED = [
    ("tsn_resnet18", {}),
    ("tsm_resnet18", {}),
    ("stm_resnet18", {}),
    ("stm_resnet50", {"stages": (5,)}),
    ("tsm_resnet18", {"temporal_pooling": True}),
    ("tsn_resnet50", {"temporal_pooling": True}),
    ("stc_resnet50", {}),
    ("stw_resnet18", {}),
    ("tea_resnet50", {}),
    ("trn_resnet50", {}),
    ("tsm_mobilenet_v2", {}),
    ("s3d_resnet18", {}),
    ("tam_inception_v1", {}),
    ("tam_resnet18", {}),
    ("stc_light_resnet18", {}),
]
TWO_SIDED_IDS = [f"{name}{''.join(f' {key}={value}' for key, value in options.items())}" for name, options in TWO_SIDED]


def pictures(streams: int, frames: int, size: int = 33) -> Tensor:
    return torch.randn(streams, frames, 3, size, size + 7, generator=torch.Generator().manual_seed(3))


def looked_at(model: nn.Module, frames: Tensor) -> list[int]:
    """After which frames the two are compared: the first three, and around the T-th, where a window is full."""
    window = model.num_frames
    assert isinstance(window, int)
    return [last for last in (0, 1, 2, window - 1, window, window + 2) if last < frames.shape[1]]


def of_clips(model: nn.Module, frames: Tensor) -> Tensor:
    """(N, t, 3, H, W) → (N, compared, C): the logits of the clip that ends at each frame looked at."""
    with torch.no_grad():
        return torch.stack([model(frames[:, : last + 1]) for last in looked_at(model, frames)], dim=1)


def of_windows(model: VideoNetwork, frames: Tensor) -> Tensor:
    """The same of the T frames that end there, the first repeated where there are fewer."""
    window = model.num_frames
    filled = torch.cat((frames[:, :1].expand(-1, window - 1, -1, -1, -1), frames), dim=1)
    with torch.no_grad():
        return torch.stack([model(filled[:, last : last + window]) for last in looked_at(model, frames)], dim=1)


def one_by_one(stream: Stream, frames: Tensor) -> Tensor:
    state, logits = None, []
    for frame in frames.unbind(1):
        given, state = stream(frame, state)
        logits.append(given)
    return torch.stack(logits, dim=1)[:, looked_at(stream, frames)]


def at_once(stream: Stream, frames: Tensor) -> Tensor:
    return stream(frames)[0][:, looked_at(stream, frames)]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("num_frames", [4, 8, 16])
@pytest.mark.parametrize(("name", "options"), CAUSAL, ids=IDS)
def test_a_causal_network_gives_frame_by_frame_what_it_gives_of_the_clip(
    name: str, options: dict[str, object], num_frames: int
) -> None:
    model = trained(name, num_frames, causal=True, **options)
    frames = pictures(2, num_frames + 3)
    expected = of_clips(model, frames)
    for network in (model, clipwise.deploy(model)):
        stream = Stream(network)
        assert off(one_by_one(stream, frames), expected) < 1e-4
        assert off(at_once(stream, frames), expected) < 1e-4


@pytest.mark.parametrize(("name", "options"), CAUSAL, ids=IDS)
def test_in_bfloat16_too_frame_by_frame_is_as_the_clip(name: str, options: dict[str, object]) -> None:
    num_frames = 4 if options else 8
    deployed = clipwise.deploy(trained(name, num_frames, causal=True, **options), dtype=torch.bfloat16)
    frames = pictures(2, num_frames + 3)
    assert off(one_by_one(Stream(deployed), frames), of_clips(deployed, frames)) < 1e-2


@pytest.mark.parametrize(("name", "options"), TWO_SIDED, ids=TWO_SIDED_IDS)
def test_a_sliding_window_gives_what_the_network_gives_of_that_window(name: str, options: dict[str, object]) -> None:
    longer = "temporal_pooling" in options or name == "tam_resnet18"
    for num_frames in (8, 16) if longer else (4, 8):
        model = trained(name, num_frames, **options)
        frames = pictures(2, num_frames + 1, 64)
        expected = of_windows(model, frames)
        for network in (model, clipwise.deploy(model)):
            stream = Stream(network)
            assert off(one_by_one(stream, frames), expected) < 1e-4
            assert off(at_once(stream, frames), expected) < 1e-4
        rounded = clipwise.deploy(model, dtype=torch.bfloat16)
        in_windows = of_windows(rounded, frames)  # type: ignore[arg-type]
        assert off(one_by_one(Stream(rounded), frames), in_windows) < 1e-2


@pytest.mark.parametrize("name", ["tsm_resnet18", "stm_resnet18", "stc_resnet18"])
@pytest.mark.parametrize("causal", [True, False])
def test_streams_of_different_lengths_share_a_batch(causal: bool, name: str) -> None:
    model = trained(name, 4, **({"causal": True} if causal else {}))
    expected = of_clips if causal else of_windows
    frames = pictures(3, 9)
    stream, state, logits = Stream(model), None, []
    for step, frame in enumerate(frames.unbind(1)):
        if step == 4:  # the second stream ended; its place goes to another
            state = stream.reset(state, [1])
        if step == 6:
            state = stream.reset(state, torch.tensor([False, False, True]))
        given, state = stream(frame, state)
        logits.append(given)
    found = torch.stack(logits, dim=1)
    for one, first, end in ((0, 0, 9), (1, 0, 4), (1, 4, 9), (2, 0, 6), (2, 6, 9)):
        part = frames[one : one + 1, first:end]
        assert off(found[one : one + 1, first:end][:, looked_at(model, part)], expected(model, part)) < 1e-4
    assert state is not None
    assert state[0].tolist() == [9, 5, 3]
    # A stream alone goes on from its rows of the state.
    alone, _ = stream(frames[1:2, 0], tuple(part[1:2] for part in state))
    together, _ = stream(frames[:, 0], state)
    assert off(alone, together[1:2]) < 1e-4


def test_the_initial_state_is_that_of_streams_not_begun() -> None:
    for options in ({"causal": True}, {}):
        stream = Stream(trained("stc_resnet18", 4, **options))
        frame = pictures(2, 1)[:, 0]
        state = stream.initial_state(2, *frame.shape[2:])
        assert not any(part.any() for part in state)
        for given, begun in zip(stream(frame, state)[1], stream(frame)[1], strict=True):
            torch.testing.assert_close(given, begun)


def test_the_callers_network_stays_as_it_is() -> None:
    model = trained("stm_resnet18", 4, causal=True).train()
    before = copy.deepcopy(model.state_dict())
    stream = Stream(model)
    one_by_one(stream, pictures(1, 3))
    assert model.training
    clip = pictures(2, 4)
    model.eval()
    torch.testing.assert_close(one_by_one(stream, clip)[:, -1], model(clip), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert next(stream.parameters()) is next(model.parameters())


def test_a_temporalized_network_streams() -> None:
    torch.manual_seed(0)
    for causal in (True, False):
        options = {"causal": True} if causal else {}
        model = clipwise.temporalize(ImageResNet((1, 1, 1, 1)), "stm", num_frames=4, num_classes=5, **options).eval()
        nn.init.normal_(model.fc.weight)
        frames = pictures(2, 6, 64)
        expected = (of_clips if causal else of_windows)(model, frames)
        assert off(one_by_one(Stream(model), frames), expected) < 1e-4
        assert off(one_by_one(Stream(clipwise.deploy(model)), frames), expected) < 1e-4


def test_a_frame_of_a_causal_network_costs_what_it_costs_without_time() -> None:
    tsn = count_macs(clipwise.create_model("tsn_resnet50", num_classes=174)) / 8
    for name in ("tsm", "tam", "stm", "stc", "stc_light", "stw"):
        stream = Stream(clipwise.create_model(f"{name}_resnet50", num_classes=174, causal=True))
        assert count_macs(stream, num_frames=1) <= 1.05 * tsn, name


def test_a_sliding_window_computes_once_what_a_frame_gives_alone() -> None:
    model = clipwise.create_model("stm_resnet50", num_classes=174)
    clip, frame = count_macs(model), count_macs(Stream(model), num_frames=1)
    # The stem, and of the first block conv1 and the shortcut: 118.0 + 12.8 + 51.4 MMACs a frame.
    assert clip - frame == 7 * (64 * 147 * 112**2 + (64 * 64 + 64 * 256) * 56**2)
    late = clipwise.create_model("stm_resnet50", num_classes=174, stages=(5,))
    assert count_macs(Stream(late), num_frames=1) < 0.32 * count_macs(late)
    tsn = clipwise.create_model("tsn_resnet50", num_classes=174)
    assert count_macs(Stream(tsn), num_frames=1) == count_macs(tsn) / 8


def test_a_stream_can_be_exported() -> None:
    stream = Stream(trained("stm_resnet18", 4, causal=True))
    frames = pictures(1, 6)
    state = stream.initial_state(1, *frames.shape[3:])
    program = torch.export.export(stream, (frames[:, 0], state)).module()
    for frame, expected in zip(frames.unbind(1), stream(frames)[0].unbind(1), strict=True):
        logits, state = program(frame, state)
        assert off(logits, expected) < 1e-4


def test_onnxruntime_carries_a_stream(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The state being a flat tuple, a runtime without Python carries it from call to call."""
    pytest.importorskip("onnx", reason="torch's exporter needs onnx")
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    stream = Stream(trained("stm_resnet18", 4, causal=True))
    frames = pictures(1, 6)
    state = stream.initial_state(1, *frames.shape[3:])
    path = tmp_path / "stream.onnx"
    torch.onnx.export(stream, (frames[:, 0], state), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    names = [one.name for one in session.get_inputs()]
    carried = [part.numpy() for part in state]
    for frame, expected in zip(frames.unbind(1), stream(frames)[0].unbind(1), strict=True):
        logits, *carried = session.run(None, dict(zip(names, [frame.numpy(), *carried], strict=True)))
        assert off(torch.from_numpy(logits), expected) < 1e-4


def test_without_consensus_the_logits_are_the_frames_own() -> None:
    model = trained("stm_resnet18", 4, causal=True)
    frames = pictures(2, 7)
    with torch.no_grad():
        expected = model.fc(model.forward_features(frames))[:, looked_at(model, frames)]
    for network in (model, clipwise.deploy(model)):
        assert off(one_by_one(Stream(network, consensus=False), frames), expected) < 1e-4
    with pytest.raises(ValueError, match="this network is not causal"):
        Stream(trained("stm_resnet18", 4), consensus=False)


def test_what_is_wrong_is_said() -> None:
    stream = Stream(trained("stm_resnet18", 4, causal=True))
    _, state = stream(pictures(2, 1)[:, 0])
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*got \(2, 40, 40, 3\)"):
        stream(torch.zeros(2, 40, 40, 3))
    with pytest.raises(ValueError, match=r"other pictures.*begins anew, with None"):
        stream(pictures(2, 1, 64)[:, 0], state)
    with pytest.raises(ValueError, match="number of streams begins anew"):
        stream(pictures(3, 1)[:, 0], state)
    with pytest.raises(ValueError, match="of another network"):
        stream(pictures(2, 1)[:, 0], state[:5])
    with pytest.raises(ValueError, match="of another network"):
        stream(pictures(2, 1)[:, 0], (*state, state[-1]))
    assert stream(pictures(2, 1)[:, 0], state)[1][0].tolist() == [2, 2]  # it goes on after each of them
    with pytest.raises(ValueError, match="of another network"):
        stream(pictures(2, 1)[:, 0], ())
    with pytest.raises(ValueError, match=r"tensor 1 is torch.float64.*need torch.float32"):
        stream(pictures(2, 1)[:, 0], tuple(part.double() if part.is_floating_point() else part for part in state))
    with pytest.raises(ValueError, match="at least 32×32"):
        Stream(trained("stm_resnet18", 4))(torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match="cannot be trained"):
        stream.train()
    with pytest.raises(ValueError, match="needs a network on a GPU, and this one is on cpu"):
        Stream(trained("tsn_resnet18"), cuda_graph=True)
    with pytest.raises(TypeError, match="got Linear"):
        Stream(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_what_was_not_finite_ends_with_its_stream() -> None:
    stream = Stream(trained("stm_resnet18", 4, causal=True))
    frames = pictures(2, 4)
    broken = frames[:, 0].clone()
    broken[0] = torch.inf
    _, state = stream(broken)
    state = stream.reset(state, [0])
    given, _ = stream(frames, state)
    assert given[0].isfinite().all()
    assert off(given[:1], stream(frames[:1])[0]) < 1e-4


@pytest.mark.parametrize("options", [{"causal": True}, {}], ids=["causal", "sliding"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float64, 1e-6)])
def test_a_network_in_another_dtype_streams(options: dict[str, object], dtype: torch.dtype, bound: float) -> None:
    model = trained("stm_resnet18", 4, **options).to(dtype)
    frames = pictures(1, 6).to(dtype)
    expected = (of_clips if options else of_windows)(model, frames)
    assert off(one_by_one(Stream(model), frames), expected) < bound


def test_a_compiled_network_streams() -> None:
    if missing := compiler_missing("cpu"):
        pytest.skip(missing)
    model = trained("tsm_resnet18", 2, causal=True)
    frames = pictures(2, 4)
    stream = Stream(clipwise.deploy(model, compile=True))
    torch._dynamo.reset()
    counters.clear()
    assert off(one_by_one(stream, frames), of_clips(model, frames)) < 1e-4
    _, state = stream(frames[:, 0], stream.initial_state(2, *frames.shape[3:]))
    stream(frames[:, 1], stream.reset(state, [0]))
    assert counters["stats"]["unique_graphs"] == 1  # new streams and given states run the same program
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.deepcopy(stream)


def test_a_recording_takes_states_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one frame and of several are two recordings, each with a state of its own."""

    class Replayed:
        def __init__(self, function: Callable[[], Tensor], result: Tensor) -> None:
            self.function, self.result = function, result

        def replay(self) -> None:
            self.result.copy_(self.function())

    def record(function: Callable[[], Tensor]) -> tuple[Replayed, Tensor]:
        result = function()
        return Replayed(function, result), result

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = trained("stc_resnet18", 4, causal=True).to(device)
    frames = pictures(2, 9).to(device)
    expected = Stream(model)(frames)[0]
    if device == "cuda":
        stream = Stream(model, cuda_graph=True)
    else:  # the same but for the graphs
        monkeypatch.setattr(streaming, "record", record)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        stream = Stream(model)
        stream._run = streaming._Recorded(stream._run, stream._begun)
    for _ in range(2):  # recorded, and replayed
        state, given = None, []
        for first, end in ((0, 1), (1, 4), (4, 5), (5, 8), (8, 9)):
            logits, state = stream(frames[:, first:end], state)
            given.append(logits)
            stream.initial_state(2, *frames.shape[3:])
        assert off(torch.cat(given, dim=1), expected) < 1e-4
    with pytest.raises(ValueError, match="number of streams begins anew"):
        stream(frames[:, 0], tuple(part[:1] for part in state))
    with pytest.raises(ValueError, match="of another network"):
        stream(frames[:, 0], state[:5])


def test_many_frames_at_once_leave_no_larger_state() -> None:
    stream = Stream(trained("stm_resnet18", 4, causal=True))

    def held(state: Sequence[Tensor]) -> int:
        return sum(part.untyped_storage().nbytes() for part in state)

    assert held(stream(pictures(1, 16))[1]) <= held(stream(pictures(1, 1))[1])


def test_a_stream_moves_and_copies_without_its_network() -> None:
    model = trained("stm_resnet18", 4, causal=True)
    frames = pictures(1, 6)
    expected = of_clips(model, frames)
    for network in (model, clipwise.deploy(model)):
        stream = Stream(network)
        for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream)), Stream(network).double()):
            assert off(one_by_one(other, frames), expected) < 1e-4
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_two_threads_in_one_stream_are_refused() -> None:
    stream = Stream(trained("stm_resnet18", 4, causal=True))
    inside, go_on = threading.Event(), threading.Event()
    stream.network.avgpool.register_forward_hook(lambda *_: (inside.set(), go_on.wait(PATIENCE), None)[2])
    frame = pictures(1, 1)[:, 0]
    other = threading.Thread(target=stream, args=(frame,))
    other.start()
    assert inside.wait(PATIENCE)
    with pytest.raises(ValueError, match="one for each thread"):
        stream(frame)
    go_on.set()
    other.join()
    stream(frame)
