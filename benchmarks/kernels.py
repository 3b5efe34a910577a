"""The Triton kernels against PyTorch's own forms of the same operations, on one GPU.

The shapes are those of ResNet-50 over 8×224×224 clips, in bfloat16 and channels-last: for each stage, the maps that a
temporal module meets in it.

    conv        temporal convolution before conv2 (STM) and before conv1 (TAM), forward, and forward with backward
    motion      CMM's difference, likewise
    shift       TSM's
    pointwise   conv1 behind a shift (TSM); conv3 with CMM's restore, bias, residual and ReLU (STM)

The forms of each, every round in another order: ours; PyTorch's eager ones; the same under torch.compile. Inputs
rotate among copies that together exceed the cache, so that memory is what is measured. ``ms`` is the time on the GPU,
of calls captured in a CUDA graph; ``call_ms`` that of the same calls made one by one from Python, which for small maps
is the time that it takes to launch them. Both are medians and quartiles over the rounds. ``gb_per_s`` is the least that
any form must move (each input read once, each output written once) over the median of ``ms``, to be compared with
``copy``, a copy of 0.5 GB measured in the same rounds. The forms' results are compared before they are timed; a form
that differs ends the run.

    python benchmarks/kernels.py --output benchmarks/results/kernels_h200_bf16.json

``--profile`` writes a trace of every form beside the result, for where a goal is missed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipwise import kernels
from clipwise.files import write_json

FRAMES = 8
DTYPE = torch.bfloat16
# Width of conv2, channels of the block's output, side of its maps.
STAGES = ((64, 256, 56), (128, 512, 28), (256, 1024, 14), (512, 2048, 7))
Form = Callable[..., Tensor]


@dataclass
class Case:
    """One operation on one shape.

    Attributes:
        inputs: makes a new set of them.
        forms: by name; the first one is ours.
        moved: bytes that any form must read and write.
        trains: of the inputs, how many take a gradient; 0 for a forward pass alone.
    """

    name: str
    inputs: Callable[[], tuple[Tensor, ...]]
    forms: dict[str, Form]
    moved: int
    trains: int = 0


def clip(batch: int, channels: int, side: int) -> Tensor:
    frames = torch.randn(batch * FRAMES, channels, side, side, device="cuda", dtype=DTYPE)
    return frames.contiguous(memory_format=torch.channels_last).unflatten(0, (batch, FRAMES))


def conv_as_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    n, t, c, h, w = x.shape
    view = x.reshape(n, t, c, h * w).transpose(1, 2)
    y = F.conv2d(view, weight.to(x.dtype).unsqueeze(-1), padding=(1, 0), groups=c)
    return y.transpose(1, 2).reshape(x.shape)


def conv_as_conv1d(x: Tensor, weight: Tensor) -> Tensor:
    n, t, c, h, w = x.shape
    rows = x.permute(0, 3, 4, 2, 1).reshape(n * h * w, c, t)
    y = F.conv1d(rows, weight.to(x.dtype), padding=1, groups=c)
    return y.reshape(n, h, w, c, t).permute(0, 4, 3, 1, 2)


def conv_as_sum(x: Tensor, weight: Tensor) -> Tensor:
    padded = F.pad(x.permute(0, 1, 3, 4, 2), (0, 0, 0, 0, 0, 0, 1, 1))
    taps = weight[:, 0].to(x.dtype).unbind(-1)
    y = padded[:, :-2] * taps[0] + padded[:, 1:-1] * taps[1] + padded[:, 2:] * taps[2]
    return y.permute(0, 1, 4, 2, 3)


def motion(x: Tensor, weight: Tensor) -> Tensor:
    c = x.shape[2]
    convolved = F.conv2d(x.flatten(0, 1), weight.to(x.dtype), padding=1, groups=c).view_as(x)
    difference = (convolved[:, 1:] - x[:, :-1]).permute(0, 1, 3, 4, 2)
    return F.pad(difference, (0, 0, 0, 0, 0, 0, 0, 1)).permute(0, 1, 4, 2, 3)


def shift(x: Tensor) -> Tensor:
    x = x.permute(0, 1, 3, 4, 2)
    fold = x.shape[-1] // 8
    after = F.pad(x[:, 1:, ..., :fold], (0, 0, 0, 0, 0, 0, 0, 1))
    before = F.pad(x[:, :-1, ..., fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat((after, before, x[..., 2 * fold :]), dim=-1).permute(0, 1, 4, 2, 3)


def groups(channels: int) -> list[tuple[int, int]]:
    fold = channels // 8
    return [(fold, 1), (fold, -1), (channels - 2 * fold, 0)]


def conv1_shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(shift(x).flatten(0, 1), weight, bias).relu()


def conv1_alone(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.flatten(0, 1), weight, bias).relu()


def conv3_then_restore(s: Tensor, weight: Tensor, bias: Tensor, h: Tensor, restore: Tensor, residual: Tensor) -> Tensor:
    y = F.conv2d(s.flatten(0, 1), weight, bias) + F.conv2d(h.flatten(0, 1), restore)
    return (y + residual.flatten(0, 1)).relu()


def conv3_side_by_side(s: Tensor, weight: Tensor, bias: Tensor, h: Tensor, restore: Tensor, residual: Tensor) -> Tensor:
    inputs = torch.cat((s.permute(0, 1, 3, 4, 2), h.permute(0, 1, 3, 4, 2)), dim=-1).permute(0, 1, 4, 2, 3)
    y = F.conv2d(inputs.flatten(0, 1), torch.cat((weight, restore), dim=1), bias)
    return (y + residual.flatten(0, 1)).relu()


def compiled(form: Form) -> Form:
    return torch.compile(form, dynamic=False)


def cases(batch: int) -> Iterator[Case]:
    size = torch.empty((), dtype=DTYPE).element_size()

    def elements(channels: int, side: int) -> int:
        return batch * FRAMES * channels * side * side

    def random(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype) / shape[1] ** 0.5

    taps_forms: dict[str, Form] = {
        "ours": kernels.temporal_conv,
        "conv2d of a view": conv_as_conv2d,
        "conv1d of a permuted copy": conv_as_conv1d,
        "sum of shifted": conv_as_sum,
        "conv2d of a view, compiled": compiled(conv_as_conv2d),
        "conv1d of a permuted copy, compiled": compiled(conv_as_conv1d),
        "sum of shifted, compiled": compiled(conv_as_sum),
    }
    motion_forms: dict[str, Form] = {"ours": kernels.motion, "eager": motion, "compiled": compiled(motion)}
    for width, out, side in STAGES:
        for c in (width, out):

            def taps(c: int = c, side: int = side) -> tuple[Tensor, ...]:
                return clip(batch, c, side), random(c, 1, 3, dtype=torch.float32)

            moved = elements(c, side) * size
            yield Case(f"conv {c}×{side}²", taps, taps_forms, 2 * moved)
            yield Case(f"conv {c}×{side}² with backward", taps, taps_forms, 5 * moved, trains=2)
        c = width // 16

        def reduced(c: int = c, side: int = side) -> tuple[Tensor, ...]:
            return clip(batch, c, side), random(c, 1, 3, 3, dtype=torch.float32)

        moved = elements(c, side) * size
        yield Case(f"motion {c}×{side}²", reduced, motion_forms, 2 * moved)
        yield Case(f"motion {c}×{side}² with backward", reduced, motion_forms, 5 * moved, trains=2)

        def wide(out: int = out, side: int = side) -> tuple[Tensor, ...]:
            return (clip(batch, out, side),)

        forms: dict[str, Form] = {
            "ours": lambda x: kernels.shift(x, groups(x.shape[2])),
            "pad and cat": shift,
            "pad and cat, compiled": compiled(shift),
        }
        yield Case(f"shift {out}×{side}²", wide, forms, 2 * elements(out, side) * size)

        def into_conv1(width: int = width, out: int = out, side: int = side) -> tuple[Tensor, ...]:
            return clip(batch, out, side), random(width, out, 1, 1), random(width, 1)[:, 0]

        forms = {
            "ours": lambda x, weight, bias: kernels.pointwise(
                x.flatten(0, 1), weight, bias, frames=FRAMES, groups=groups(x.shape[2]), relu=True
            ),
            "shift, then conv2d": conv1_shifted,
            "shift, then conv2d, compiled": compiled(conv1_shifted),
            "without the shift, compiled": compiled(conv1_alone),  # what a shift at no cost would leave
        }
        moved = (elements(out, side) + elements(width, side)) * size
        yield Case(f"pointwise {out}→{width}, {side}², shifted", into_conv1, forms, moved)

        def into_conv3(width: int = width, out: int = out, side: int = side) -> tuple[Tensor, ...]:
            reduced = max(8, width // 16)
            return (
                clip(batch, width, side),
                random(out, width, 1, 1),
                random(out, 1)[:, 0],
                clip(batch, reduced, side),
                random(out, reduced, 1, 1),
                clip(batch, out, side),
            )

        forms = {
            "ours": lambda s, weight, bias, h, restore, residual: kernels.pointwise(
                s.flatten(0, 1), weight, bias, frames=FRAMES, also=(h, restore), residual=residual, relu=True
            ),
            "two conv2d": conv3_then_restore,
            "two conv2d, compiled": compiled(conv3_then_restore),
            "one conv2d of both, compiled": compiled(conv3_side_by_side),
        }
        channels = width + max(8, width // 16) + 2 * out
        yield Case(f"pointwise {width}→{out}, {side}², restore", into_conv3, forms, elements(channels, side) * size)


def runner(case: Case, form: Form) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (form(*inputs),)

    def with_backward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        *leaves, grad = inputs
        y = form(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves[: case.trains], grad)

    return with_backward if case.trains else forward


def input_sets(case: Case, cache: int) -> list[tuple[Tensor, ...]]:
    sets: list[tuple[Tensor, ...]] = []
    while not sets or (len(sets) < 16 and len(sets) * sum(x.nbytes for x in sets[0]) < 4 * cache):
        inputs = case.inputs()
        if case.trains:
            inputs = (*(x.requires_grad_() for x in inputs), torch.randn_like(inputs[0]))
        sets.append(inputs)
    return sets


def milliseconds(run: Callable[[], Any], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def captured(run: Callable[[tuple[Tensor, ...]], Any], sets: list[tuple[Tensor, ...]]) -> torch.cuda.CUDAGraph:
    """One call for each set of inputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            run(inputs)
    return graph


def compare(case: Case, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """The largest relative error of each form's results against single precision."""
    exact = tuple(x.detach().float().requires_grad_(x.requires_grad) for x in inputs)
    reference = runner(case, next(form for name, form in case.forms.items() if name != "ours"))(exact)
    errors = {}
    for name, form in case.forms.items():
        if name.startswith("without"):
            continue
        errors[name] = max(
            ((ours.float() - wanted).norm() / wanted.norm()).item()
            for ours, wanted in zip(runner(case, form)(inputs), reference, strict=True)
        )
        if not errors[name] < 2e-2:
            raise SystemExit(f"{case.name}: {name} is off by {errors[name]:.1e} of the norm; nothing is timed")
    return errors


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def measure(case: Case, rounds: int, traces: Path | None) -> dict[str, Any]:
    sets = input_sets(case, torch.cuda.get_device_properties(0).L2_cache_size)
    errors = compare(case, sets[0])
    turn = cycle(sets)
    source = torch.empty(2**28, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    replays: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    singles: dict[str, Callable[[], Any]] = {}
    for name, form in case.forms.items():
        run = runner(case, form)
        for inputs in sets[:3]:  # kernels are chosen and compiled before a capture
            run(inputs)
        torch.cuda.synchronize()
        replays[name] = captured(run, sets).replay
        singles[name] = lambda run=run: run(next(turn))
    per_replay = {name: 1 if name == "copy" else len(sets) for name in replays}
    repeats = {name: _repeats(run) for name, run in replays.items()}
    calls = {name: _repeats(run) for name, run in singles.items()}
    times: dict[str, list[float]] = {name: [] for name in replays}
    call_times: dict[str, list[float]] = {name: [] for name in singles}
    names = list(replays)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(milliseconds(replays[name], repeats[name]) / per_replay[name])
            if name in singles:
                call_times[name].append(milliseconds(singles[name], calls[name]))
    if traces is not None:
        for name, run in singles.items():
            with torch.profiler.profile() as profile:
                run()
                torch.cuda.synchronize()
            profile.export_chrome_trace(str(traces / f"{case.name} {name}.json".replace(" ", "_")))
    result: dict[str, Any] = {"operation": case.name, "bytes": case.moved, "forms": {}}
    for name, values in times.items():
        moved = 2 * source.nbytes if name == "copy" else case.moved
        entry: dict[str, Any] = {"ms": quartiles(values), "gb_per_s": moved / statistics.median(values) / 1e6}
        if name in singles:
            entry["call_ms"] = quartiles(call_times[name])
        if name in errors:
            entry["relative_error"] = errors[name]
        result["forms"][name] = entry
    return result


def _repeats(run: Callable[[], Any]) -> int:
    """How often to run for about 10 ms."""
    milliseconds(run, 2)
    return max(2, min(200, round(10 / milliseconds(run, 3))))


def table(result: dict[str, Any]) -> str:
    lines = [result["operation"]]
    for name, entry in result["forms"].items():
        ms = entry["ms"]
        spread = f"{ms['median']:8.4f} ms ({ms['quartile_1']:.4f} … {ms['quartile_3']:.4f})"
        called = f"   called {entry['call_ms']['median']:.4f}" if "call_ms" in entry else ""
        lines.append(f"    {name:36} {spread} {entry['gb_per_s']:7.0f} GB/s{called}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--batch", type=int, default=32, help="clips")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="operations whose name begins so")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.usable(torch.empty(1, device="cuda", dtype=DTYPE)):
        sys.exit("benchmarks/kernels.py needs an NVIDIA GPU of capability 8.0 or newer and triton; there is none here")
    torch.manual_seed(0)
    torch._dynamo.config.cache_size_limit = 64  # a shape is a new graph of the same function
    traces = arguments.output.with_suffix("") if arguments.profile else None
    if traces is not None:
        traces.mkdir(parents=True, exist_ok=True)
    import triton

    results = []
    condition = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "dtype": str(DTYPE).removeprefix("torch."),
        "layout": "channels_last",
        "batch": arguments.batch,
        "frames": FRAMES,
        "rounds": arguments.rounds,
    }
    for case in cases(arguments.batch):
        if case.name.startswith(arguments.only):
            results.append(measure(case, arguments.rounds, traces))
            print(table(results[-1]), flush=True)
            write_json(arguments.output, condition | {"operations": results})  # what is done stays, whatever follows


if __name__ == "__main__":
    main()
