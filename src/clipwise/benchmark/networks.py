"""Networks' speed: all of them, in all forms, by turns in one process.

A round gives each network in each form its turn, some tenths of a second long; ratios are taken round by round, so
that what slows the machine down for a while slows both sides. Before the rounds everything is built, compiled and
warmed up. At batch 1 the device is waited for after each step, which makes it a latency; else after each turn.
"""

import contextlib
import copy
import gc
import importlib.util
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipwise import kernels
from clipwise.benchmark.timing import account, device_tag, in_turns, quartiles, seconds_of, wait_for
from clipwise.compiling import compile_frozen, compiler_missing
from clipwise.config import TrainingConfig
from clipwise.models.complexity import count_macs, count_parameters
from clipwise.models.network import VideoNetwork, channels_last
from clipwise.models.registry import create_model, model_entry, model_options

__all__ = [
    "DTYPES",
    "FORMS",
    "MODES",
    "OURS",
    "Condition",
    "Contender",
    "Plan",
    "Subject",
    "benchmark_networks",
    "check_forms",
    "compare_outputs",
    "inference_form",
    "load_rival",
    "measure",
    "plan_name",
    "prepare",
    "ratio",
    "rows_of",
    "settings_for",
    "subject_of",
]

MODES = ("infer", "train")

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""tf32 computes convolutions of fp32 numbers with shorter mantissas; GPUs have it."""

FORMS = {
    "eager": "as it is trained; in inference its weights and input in the dtype",
    "compiled": "the same through torch.compile, in inference with weights as constants (freezing)",
    "deployed": "clipwise.deploy",
    "deployed+compiled": "clipwise.deploy with compile",
    "cuda-graph": "clipwise.deploy as a CUDA graph",
    "deployed+compiled+cuda-graph": "clipwise.deploy with compile, as a CUDA graph",
    "deployed+kernels+compiled": "clipwise.deploy with our kernels, and compile for the rest",
    "deployed+kernels+cuda-graph": "clipwise.deploy with our kernels, as a CUDA graph",
    "deployed+kernels+compiled+cuda-graph": "clipwise.deploy with our kernels, compile for the rest, as a CUDA graph",
}

OURS = "clipwise"
"""The formulation of a network that is not a rival's."""

_TURN = 0.2
"""Seconds that a turn lasts at least; one step where that takes longer."""
_WARM_UP = 3
"""Steps before the first that counts, of which the first compiles."""
_CLASSES = 174
_TOLERATED = 1e-3
"""Of the largest output in fp32: a rival that is farther off computes something else."""


@dataclass(frozen=True)
class Condition:
    """What a step is.

    Raises:
        ValueError: for a mode or dtype that does not exist, or not on this device.
    """

    mode: str
    dtype: str
    batch: int
    frames: int
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch < 1:
            raise ValueError(f"a batch has at least one clip, got {self.batch}")
        if self.dtype == "tf32" and self.device.type != "cuda":
            raise ValueError("dtype tf32 is a mode of NVIDIA GPUs, and this runs on a CPU; take fp32 or bf16")
        if self.mode == "train" and self.dtype == "fp16":
            raise ValueError("training in fp16 needs a loss scaler, and here is none; take bf16")

    def clips(self, layout: torch.memory_format) -> Tensor:
        """(N, T, 3, H, W) noise on the device; its frames, folded, lie in ``layout``.

        In inference it has the dtype that is computed in, so that no network is timed while it converts pixels; in
        training it is fp32, which is what autocast gets.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.frames, 3, self.size, self.size)
        clips = torch.randn(shape, generator=generator)
        if layout == torch.channels_last:
            clips = clips.movedim(2, -1).contiguous().movedim(-1, 2)
        return clips.to(self.device, DTYPES[self.dtype] if self.mode == "infer" else torch.float32)


@dataclass(frozen=True)
class Subject:
    """A network that is measured, in one formulation."""

    network: str
    model: nn.Module
    """fp32, on the device."""
    parameters: int
    macs: int
    """Of one clip."""
    formulation: str = OURS
    """``clipwise``, or the rival's function."""

    @property
    def layout(self) -> torch.memory_format:
        """Of the frames that it is given: channels-last, unless a rival says otherwise by ``memory_format``."""
        if self.formulation == OURS:
            return torch.channels_last
        named: torch.memory_format = getattr(self.model, "memory_format", torch.channels_last)
        return named

    def takes(self, form: str) -> bool:
        """Whether there is such a form of it: of a rival nothing is deployed."""
        return self.formulation == OURS or form in ("eager", "compiled")


@dataclass
class Contender:
    """A subject in one form, ready for its turns; or what became of it."""

    subject: Subject
    form: str
    condition: Condition
    step: Callable[[], object] | None = None
    ready_seconds: float = 0.0
    """Building, compiling and warming up."""
    peak_bytes: int | None = None
    """Of GPU memory in a step: weights, clips, gradients, the optimiser's state and whatever else it needs. None on a
    CPU, whose allocator does not tell, and of a CUDA graph, whose memory is apart."""
    failed: str | None = None
    steps: int = 1
    """Of a turn."""
    seconds: list[float] = field(default_factory=list)
    """A step's, of each round."""

    @property
    def title(self) -> str:
        """Network, form and dtype, and the formulation where it is not ours."""
        whose = "" if self.subject.formulation == OURS else f" [{self.subject.formulation}]"
        return f"{self.subject.network}{whose}, {self.form}, {self.condition.dtype}"

    def take_turn(self) -> None:
        """Add one round."""
        assert self.step is not None
        with self.memory_guarded():
            if self.condition.batch == 1:
                each = [seconds_of(self.step, self.condition.device) for _ in range(self.steps)]
                self.seconds.append(median(each))
            else:
                self.seconds.append(seconds_of(self.step, self.condition.device, self.steps) / self.steps)

    @contextlib.contextmanager
    def memory_guarded(self) -> Iterator[None]:
        """Note that memory ran out, and go on without this one."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:  # torch's errors of either device are RuntimeErrors
            if not _is_out_of_memory(error):
                raise
            self.failed = "out of memory"
            self.step = None
        if self.failed:
            release(self.condition.device)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(
        re.search(r"out of memory|can't allocate memory|not enough memory", str(error), re.IGNORECASE)
    )


def release(device: torch.device) -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def check_forms(forms: Sequence[str], condition: Condition) -> None:
    """Refuse forms that do not exist, or not on this machine.

    Raises:
        ValueError: naming the form and what to do.
    """
    if not forms:
        raise ValueError(f"no form is given; there are {', '.join(FORMS)}")
    for place, form in enumerate(forms):
        if form not in FORMS:
            raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
        if form in forms[:place]:
            raise ValueError(f"form {form!r} is given twice")
        if condition.mode == "train" and form not in ("eager", "compiled"):
            raise ValueError(f"form {form!r} is for inference; training runs eager or compiled")
        if "cuda-graph" in form and condition.device.type != "cuda":
            raise ValueError(f"form {form!r} needs a CUDA GPU, and this runs on a CPU; take deployed")
        if "kernels" in form and not kernels.usable(
            torch.empty(1, dtype=DTYPES[condition.dtype], device=condition.device)
        ):
            raise ValueError(f"form {form!r} needs triton and a GPU of NVIDIA's; take deployed")
        if "compiled" in form and (missing := compiler_missing(condition.device.type)):
            raise ValueError(f"form {form!r}: {missing}; or leave the form out")


@contextlib.contextmanager
def settings_for(condition: Condition, forms: Sequence[str]) -> Iterator[None]:
    """The settings of PyTorch under which all are measured, put back afterwards.

    In inference cuDNN tries its algorithms for each shape. fp32 means fp32: PyTorch's convolutions would use tf32 by
    default. And the compiler may keep a form for each network: they share code, of which it keeps eight by default and
    then, without a word, compiles no more.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    # Training has them as `clipwise train` has: cuDNN's own choice of algorithm.
    cudnn.benchmark, cudnn.allow_tf32 = condition.mode == "infer", condition.dtype == "tf32"
    torch.set_float32_matmul_precision("high" if condition.dtype == "tf32" else "highest")
    try:
        if any("compiled" in form for form in forms):
            import torch._dynamo as dynamo

            with dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=4096):
                yield
        else:
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before[:2]
        torch.set_float32_matmul_precision(before[2])


def prepare(subject: Subject, form: str, condition: Condition) -> Contender:
    """Build a subject's form, compile it, warm it up, measure its memory, and count how many steps make a turn.

    Where memory runs out, that stands in ``failed``.
    """
    contender, device = Contender(subject, form, condition), condition.device
    held = _held_bytes(device)
    begin = time.perf_counter()
    with contender.memory_guarded():
        make = _inference_step if condition.mode == "infer" else _training_step
        step = make(subject, form, condition)
        for _ in range(_WARM_UP):
            step()
        wait_for(device)
        contender.ready_seconds = time.perf_counter() - begin
        if device.type == "cuda" and "cuda-graph" not in form:
            torch.cuda.reset_peak_memory_stats(device)
            step()
            wait_for(device)
            contender.peak_bytes = torch.cuda.max_memory_allocated(device) - held
        contender.steps = max(1, math.ceil(_TURN / seconds_of(step, device)))
        contender.step = step
    return contender


def _held_bytes(device: torch.device) -> int:
    """What is held on the GPU before a network is built there; the libraries' workspaces are, so that the first network
    to be measured is not charged with them. 0 for a CPU."""
    if device.type != "cuda":
        return 0
    for dtype in (torch.float32, torch.bfloat16):
        small = torch.ones(16, 16, device=device, dtype=dtype, requires_grad=True)
        F.linear(small, small, small[0]).sum().backward()
    del small
    release(device)
    return torch.cuda.memory_allocated(device)


def inference_form(network: nn.Module, form: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A network in one of :data:`FORMS`, as a function of clips; the network that is given stays as it is."""
    if form not in ("eager", "compiled"):
        from clipwise.inference.deploy import deploy

        assert isinstance(network, VideoNetwork)
        return deploy(
            network,
            dtype=dtype,
            compile="compiled" in form,
            cuda_graph="cuda-graph" in form,
            with_kernels="kernels" in form,
        )
    network = _laid_out(copy.deepcopy(network).eval().requires_grad_(False).to(dtype))
    if form == "compiled":
        return compile_frozen(network)
    return network


def _inference_step(subject: Subject, form: str, condition: Condition) -> Callable[[], object]:
    run = inference_form(subject.model, form, DTYPES[condition.dtype])
    clips = condition.clips(subject.layout)

    @torch.inference_mode()
    def step() -> object:
        return run(clips)

    return step


def _training_step(subject: Subject, form: str, condition: Condition) -> Callable[[], object]:
    """Forward, loss, backward, the gradient's clipping and SGD's step, with the settings that ``clipwise train`` has by
    default; without its data, and without waiting for each step's loss."""
    settings = replace(TrainingConfig(), batch_size=condition.batch)
    network = _laid_out(copy.deepcopy(subject.model).train())
    run: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if form == "compiled" else network
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.effective_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=condition.device.type == "cuda",
    )
    clips = condition.clips(subject.layout)
    labels = torch.arange(condition.batch, device=condition.device) % _CLASSES
    kind = condition.device.type

    def step() -> object:
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=condition.dtype == "bf16"):
            logits = run(clips)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        loss.backward()
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        return loss

    return step


def _laid_out(network: nn.Module) -> nn.Module:
    return channels_last(network) if isinstance(network, VideoNetwork) else network


def measure(contenders: Sequence[Contender], rounds: int) -> bool:
    """Give every contender its turn in each round; False if Ctrl-C ended that before, then whole rounds are kept."""
    ready = [contender for contender in contenders if contender.step is not None]
    try:
        for order in in_turns(ready, rounds):
            for contender in order:
                if contender.step is not None:
                    contender.take_turn()
    except KeyboardInterrupt:
        whole = min((len(one.seconds) for one in ready if not one.failed), default=0)
        for contender in ready:
            del contender.seconds[whole:]
        return False
    return True


def rows_of(contenders: Sequence[Contender], against: str | None = None) -> list[dict[str, Any]]:
    """What was measured, a row for each contender; ratios are of clips per second, above 1 where the row's is faster.

    ``to_against`` compares with that network in the same form, ``to_rival`` with the rival's faster form.
    """
    measured = [one for one in contenders if one.seconds and not one.failed]
    rows = []
    for one in contenders:
        subject, batch = one.subject, one.condition.batch
        row: dict[str, Any] = {
            "network": subject.network,
            "formulation": subject.formulation,
            "form": one.form,
            "dtype": one.condition.dtype,
            "batch": batch,
            "parameters": subject.parameters,
            "macs": subject.macs,
            "layout": str(subject.layout).removeprefix("torch."),
        }
        if one.failed:
            rows.append(row | {"failed": one.failed})
            continue
        if not one.seconds:
            continue
        row |= {
            "rounds": len(one.seconds),
            "steps_a_round": one.steps,
            "milliseconds_a_step": quartiles(1e3 * value for value in one.seconds),
            "clips_per_second": quartiles(batch / value for value in one.seconds),
            "peak_memory_bytes": one.peak_bytes,
            "ready_seconds": round(one.ready_seconds, 1),
        }
        base = [
            other
            for other in measured
            if (other.subject.network, other.subject.formulation) == (against, OURS)
            and (other.form, other.condition) == (one.form, one.condition)
        ]
        if base and base[0] is not one:
            row["to_against"] = ratio(one, base[0])
        rivals = [
            other
            for other in measured
            if other.subject.network == subject.network and other.subject.formulation != OURS
        ]
        if rivals and subject.formulation == OURS:
            best = min(rivals, key=lambda rival: median(rival.seconds))
            row["to_rival"] = ratio(one, best) | {
                "rival": f"{best.subject.formulation}, {best.form}, {best.condition.dtype}"
            }
        rows.append(row)
    return rows


def ratio(one: Contender, other: Contender) -> dict[str, Any]:
    """How many times as many clips a second the one does, round by round."""
    return quartiles(b / a for a, b in zip(one.seconds, other.seconds, strict=False))


def load_rival(where: str) -> Callable[[nn.Module], nn.Module]:
    """The function that ``PATH.py:FUNCTION`` names.

    Raises:
        ValueError: if there is no such file or function, or the file does not run.
    """
    path, _, name = where.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"a rival is given as PATH.py:FUNCTION, got {where!r}")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, which --rival should name")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: does not run ({type(error).__name__}: {error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{path}: has no function {name!r}; there is {', '.join(known) or 'none'}")
    found: Callable[[nn.Module], nn.Module] = function
    return found


def compare_outputs(ours: nn.Module, rival: nn.Module, clips: Tensor) -> dict[str, float]:
    """The largest difference between two networks' logits in evaluation mode, and its share of the largest logit.

    Raises:
        ValueError: if that share exceeds a thousandth, or the shapes differ.
    """
    before = [(network, network.training) for network in (ours, rival)]
    layout = getattr(rival, "memory_format", torch.channels_last)
    given = clips if layout == torch.channels_last else clips.contiguous()
    try:
        with torch.no_grad():
            expected, found = ours.eval()(clips), rival.eval()(given)
    finally:
        for network, training in before:
            network.train(training)
    if expected.shape != found.shape:
        raise ValueError(f"the rival gives {tuple(found.shape)}, ours {tuple(expected.shape)}: it is another network")
    difference = float((expected - found).abs().max())
    share = difference / float(expected.abs().max())
    if not share <= _TOLERATED:
        raise ValueError(
            f"the rival's outputs differ from ours by {share:.2g} of the largest one in fp32 (at most {_TOLERATED:g} "
            "is taken for rounding): it is another network, and its speed says nothing"
        )
    return {"max_difference": difference, "of_the_largest": share}


@dataclass(frozen=True)
class Plan:
    """What ``clipwise benchmark model`` is asked for.

    Raises:
        ValueError: for a network, form, dtype or number that does not exist, or not on this machine.
    """

    networks: tuple[str, ...]
    device: torch.device
    against: str | None = None
    forms: tuple[str, ...] = ("eager",)
    batches: tuple[int, ...] = (1,)
    frames: int = 8
    size: int = 224
    mode: str = "infer"
    dtype: str = "fp32"
    rounds: int = 15
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ``create_model``, for all networks; for the one to compare with, those that it has."""
    rival: str | None = None

    def __post_init__(self) -> None:
        if not self.networks:
            raise ValueError("no network is named; `clipwise models` lists them")
        for place, name in enumerate(self.networks):
            model_entry(name)
            if name in self.networks[:place]:
                raise ValueError(f"network {name!r} is named twice")
        if self.against is not None:
            model_entry(self.against)
        if not self.batches:
            raise ValueError("no batch is given, such as 1,32")
        for place, batch in enumerate(self.batches):
            if batch in self.batches[:place]:
                raise ValueError(f"batch {batch} is given twice")
            check_forms(self.forms, self.condition(batch))
        if self.rounds < 1:
            raise ValueError(f"there is at least one round, got {self.rounds}")
        if self.rival is not None:
            load_rival(self.rival)
            if not {"eager", "compiled"} & set(self.forms):
                raise ValueError(
                    f"a rival runs eager or compiled, and neither is in --form {','.join(self.forms)}; add one"
                )

    def condition(self, batch: int) -> Condition:
        """What a step is at that batch."""
        return Condition(self.mode, self.dtype, batch, self.frames, self.size, self.device)

    def options_of(self, name: str) -> dict[str, Any]:
        """The options that a network gets."""
        if name in self.networks:
            return dict(self.options)
        known = model_options(name)
        return {key: value for key, value in self.options.items() if key in known}

    @property
    def measured(self) -> tuple[str, ...]:
        """All networks; the one to compare with goes first."""
        rest = tuple(name for name in self.networks if name != self.against)
        return rest if self.against is None else (self.against, *rest)


def plan_name(plan: Plan) -> str:
    """The name of the result file without its ending: the condition, such as ``speed_infer_bf16_b32_8x224_h200``."""
    batches = "-".join(map(str, plan.batches))
    return f"speed_{plan.mode}_{plan.dtype}_b{batches}_{plan.frames}x{plan.size}_{device_tag(plan.device)}"


def subject_of(name: str, condition: Condition, options: Mapping[str, Any]) -> Subject:
    """A network with random weights; the speed does not depend on them.

    Raises:
        ValueError: for a network or option that does not exist.
    """
    torch.manual_seed(0)
    model = create_model(name, num_classes=_CLASSES, num_frames=condition.frames, **options)
    macs = count_macs(model, condition.size)
    return Subject(name, channels_last(model.to(condition.device)), count_parameters(model), macs)


def benchmark_networks(plan: Plan, *, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure, and return the record that the result file holds.

    Ctrl-C ends it with what was measured so far, and ``interrupted`` true.

    Args:
        plan: what is asked for.
        tell: hears a line about each network that is ready.

    Raises:
        ValueError: for an option that a network does not take, or a rival that computes something else.
    """
    outputs: dict[str, Any] = {}
    record: dict[str, Any] = {
        "what": "median and quartiles over rounds in which all take turns, after warm-up; ratios round by round",
        **account(plan.device),
        "condition": {
            "mode": plan.mode,
            "dtype": plan.dtype,
            "batches": list(plan.batches),
            "frames": plan.frames,
            "size": plan.size,
            "rounds": plan.rounds,
            "forms": {form: FORMS[form] for form in plan.forms},
            "options": {name: plan.options_of(name) for name in plan.measured},
            "classes": _CLASSES,
            "input": f"noise on the device, {plan.dtype if plan.mode == 'infer' else 'fp32'}, in each row's layout",
            "waited_for": "after each step at batch 1, else after each turn",
            "cudnn_benchmark": plan.device.type == "cuda" and plan.mode == "infer",
        },
        "against": plan.against,
        "rival": plan.rival and {"function": plan.rival, "outputs": outputs},
        "interrupted": False,
        "results": [],
    }
    with settings_for(plan.condition(plan.batches[0]), plan.forms):
        for batch in plan.batches:
            contenders: list[Contender] = []
            try:
                for contender in _contenders(plan, plan.condition(batch), outputs):
                    contenders.append(contender)
                    tell(f"{contender.title}, batch {batch}: {_readiness(contender)}")
                finished = measure(contenders, plan.rounds)
            except KeyboardInterrupt:  # before the first round
                finished = False
            record["results"] += rows_of(contenders, plan.against)
            contenders.clear()
            release(plan.device)
            if not finished:
                return record | {"interrupted": True}
    return record


def _readiness(contender: Contender) -> str:
    return contender.failed or f"ready after {contender.ready_seconds:.1f} s"


def _contenders(plan: Plan, condition: Condition, outputs: dict[str, Any]) -> Iterator[Contender]:
    rival = None if plan.rival is None else load_rival(plan.rival)
    for name in plan.measured:
        try:
            subjects = [subject_of(name, condition, plan.options_of(name))]
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            empty = Subject(name, nn.Identity(), 0, 0)
            yield from (Contender(empty, form, condition, failed="out of memory") for form in plan.forms)
            continue
        if rival is not None and plan.rival is not None and name in plan.networks:
            where = f"{Path(plan.rival.rpartition(':')[0]).name}:{plan.rival.rpartition(':')[2]}"
            subjects.append(replace(subjects[0], model=rival(subjects[0].model), formulation=where))
            if name not in outputs:
                exact = replace(condition, mode="infer", dtype="fp32", batch=min(2, condition.batch))
                with settings_for(exact, ()):
                    outputs[name] = compare_outputs(
                        subjects[0].model, subjects[1].model, exact.clips(torch.channels_last)
                    )
        for subject in subjects:
            for form in plan.forms:
                if subject.takes(form):
                    yield prepare(subject, form, condition)
