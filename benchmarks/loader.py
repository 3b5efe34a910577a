"""Videos a second, against the other readers in one alternating run; what packing, memory and the loader itself do.

readers   8 frames spread over a clip, and 32 consecutive ones with a stride of 2, from path to RGB array, opening
          included, by one process and by two at once. Every reader gets one decoder thread; each round goes through
          the readers in another order.

          ours          ``clipwise.data.decode.VideoFile``
          in order      PyAV: decode in order, convert the wanted, stop after the last
          naive         PyAV: decode and convert every frame
          bare          PyAV, told at which keyframe to begin: decode in order from there, convert the wanted, both as
                        ours does, and nothing else. For frames in a row this is the least that a reader on PyAV can
                        do. (In AVI with B-frames it may begin a frame beside.)
          decord2       ``VideoReader.get_batch``
          opencv        ``VideoCapture``: grab all, retrieve the wanted
          torchcodec    ``VideoDecoder.get_frames_at``, exact, its default

stores    the same from packs and shards of these clips, through ``Manifest.open``
index     what making a file's packet index costs, and what keeping it spares: short clips, and 5 minutes
loader    training clips through a loader process beside the bare steps (read, crop and resize)
memory    a loader process's memory over many samples

Rivals that are not installed are left out, with the reason. The readers' frames are compared with ours: the share of
clips where they are equal, and how far they are off elsewhere (each brings its own conversion to RGB).

    python benchmarks/loader.py --data ../shared/data --output benchmarks/results/loader_cpu_2cores.json

``--parts`` measures some parts anew, in a file that is there already.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from reader import age_heap, n1, n2, processor, quartiles, real, scene
from torch.utils.data import DataLoader

from clipwise.config import AugmentationConfig, DataConfig
from clipwise.data.dataset import Draw, TrainingClips
from clipwise.data.decode import UNPROBED, VideoFile
from clipwise.data.direct_rgb import SLACK, DirectRgb, rgb_pixels
from clipwise.data.manifest import Manifest
from clipwise.data.pack import pack
from clipwise.data.shards import write_shards
from clipwise.data.shared_buffers import ClipLoader
from clipwise.data.transforms import crop_resize, train_box

Reader = Callable[[str, list[int]], np.ndarray]
PARTS = ("readers", "stores", "index", "loader", "memory")
REQUESTS = {"sparse 8": 8, "dense 32×2": 32}
SIDE = 224


def ours(path: str, indices: list[int]) -> np.ndarray:
    with VideoFile(path) as video:
        return video.read(indices)


def pyav_in_order(path: str, indices: list[int]) -> np.ndarray:
    return n2(Path(path), indices, 1)


def pyav_naive(path: str, indices: list[int]) -> np.ndarray:
    return n1(Path(path), indices, 1)


@cache
def keyframe_before(path: str, frame: int) -> tuple[int, int]:
    """The time stamp of the last keyframe that is not after a frame, and how many frames it is before it."""
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stamps = sorted((p.dts if p.pts is None else p.pts, p.is_keyframe) for p in container.demux(stream) if p.size)
    entry = max(number for number, (_, is_keyframe) in enumerate(stamps[: frame + 1]) if is_keyframe)
    return stamps[entry][0], frame - entry


def pyav_bare(path: str, indices: list[int]) -> np.ndarray:
    stamp, skip = keyframe_before(path, indices[0])
    places = {index - indices[0] + skip: place for place, index in enumerate(dict.fromkeys(indices))}
    last = max(places)
    # Opened, and converted, in the cheapest way that ours knows.
    options = UNPROBED if path.endswith((".avi", ".mp4", ".webm")) else None
    with av.open(path, metadata_errors="ignore", options=options) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        codec.thread_count = 1
        if stamp:
            container.seek(stamp, stream=stream)
        direct, reformatter = DirectRgb(), av.video.reformatter.VideoReformatter()
        size = stream.height * stream.width * 3
        memory = np.empty(len(places) * size + SLACK, np.uint8)
        pictures = memory[:-SLACK].reshape(len(places), stream.height, stream.width, 3)
        number = 0
        for packet in container.demux(stream):
            for frame in codec.decode(packet):
                place = places.get(number)
                if place is not None and not direct.convert(frame, memory.ctypes.data + place * size):
                    pictures[place] = rgb_pixels(reformatter.reformat(frame, format="rgb24", threads=1))
                if number == last:
                    return pictures
                number += 1
    raise RuntimeError(f"{path}: ends before frame {max(indices)}")


def rivals() -> tuple[dict[str, Reader], dict[str, str]]:
    """Readers of the libraries that are installed, and their versions or why they are left out."""
    readers: dict[str, Reader] = {}
    said: dict[str, str] = {}

    def without(name: str, error: BaseException) -> None:
        said[name] = "left out: " + " ".join(str(error).split())[:400]

    try:  # before the others, whose FFmpeg it would else be given
        import torchcodec
        from torchcodec.decoders import VideoDecoder

        def read_torchcodec(path: str, indices: list[int]) -> np.ndarray:
            decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
            return decoder.get_frames_at(indices).data.numpy()

        readers["torchcodec"], said["torchcodec"] = read_torchcodec, torchcodec.__version__
        try:
            from torchcodec import _core

            said["torchcodec's FFmpeg"] = str(_core.get_ffmpeg_library_versions().get("ffmpeg_version"))
        except (AttributeError, ImportError):
            pass
    except (ImportError, OSError, RuntimeError) as error:
        without("torchcodec", error)
    try:
        import decord

        def read_decord(path: str, indices: list[int]) -> np.ndarray:
            return decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()

        readers["decord2"], said["decord2"] = read_decord, decord.__version__
    except (ImportError, OSError, RuntimeError) as error:
        without("decord2", error)
    try:
        import cv2

        cv2.setNumThreads(1)

        def read_opencv(path: str, indices: list[int]) -> np.ndarray:
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            wanted, last, frames = set(indices), max(indices), {}
            for number in range(last + 1):
                if not capture.grab():
                    raise RuntimeError(f"{path}: ends before frame {number}")
                if number in wanted:
                    frames[number] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            capture.release()
            return np.stack([frames[index] for index in indices])

        readers["opencv"], said["opencv"] = read_opencv, cv2.__version__
    except (ImportError, OSError, RuntimeError) as error:
        without("opencv", error)
    return readers, said


def all_readers() -> dict[str, Reader]:
    return {"ours": ours, "in order": pyav_in_order, "naive": pyav_naive, "bare": pyav_bare, **rivals()[0]}


# Clips

KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264 long GOP, rendered": ("mp4", "libx264", {"g": "250"}),
    "vp9, rendered": ("webm", "libvpx-vp9", {"g": "250", "cpu-used": "5", "b": "600k"}),
    "mpeg4, rendered": ("avi", "mpeg4", {"g": "12", "b": "1200k"}),
}


def render(folder: Path, clips: int, seed: int) -> dict[str, list[str]]:
    """Scenes of 4 to 10 s, 320×240, 25 frames a second, each in every codec."""
    groups: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for clip in range(clips):
        outputs: list[tuple[Any, Any]] = []
        for kind, (suffix, codec, options) in KINDS.items():
            path = str(folder / f"{codec}_{clip:02d}.{suffix}")
            container = av.open(path, "w")
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.codec_context.thread_count = 1
            outputs.append((container, stream))
            groups[kind].append(path)
        for image in scene(round(25 * (4 + 6 * clip / max(1, clips - 1))), 320, 240, seed + clip):
            for container, stream in outputs:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for container, stream in outputs:
            container.mux(stream.encode(None))
            container.close()
    return groups


def lengthen(path: str, output: Path, times: int) -> str:
    """A clip's packets, ``times`` times over, without encoding anything."""
    with av.open(path) as source, av.open(str(output), "w") as target:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        span = max(p.pts for p in packets) - min(p.pts for p in packets) + (packets[0].duration or 1)
        out = target.add_stream_from_template(stream)
        for turn in range(times):
            for old in packets:
                packet = av.Packet(bytes(old))
                packet.pts, packet.dts = old.pts + turn * span, old.dts + turn * span
                packet.duration, packet.is_keyframe = old.duration, old.is_keyframe
                packet.time_base, packet.stream = stream.time_base, out
                target.mux(packet)
    return str(output)


def indices_for(count: int, request: str) -> list[int]:
    if request.startswith("sparse"):
        return [int((segment + 0.5) * count / 8) for segment in range(8)]
    start = max(0, count - 64) // 2
    return [min(start + 2 * number, count - 1) for number in range(32)]


def counts_of(groups: dict[str, list[str]]) -> dict[str, int]:
    counts = {}
    for path in (path for files in groups.values() for path in files):
        with VideoFile(path) as video:
            counts[path] = video.num_frames
    return counts


# Readers


def serve(pipe: Any, counts: dict[str, int]) -> None:
    """A process that reads what it is told to, and answers with its CPU seconds."""
    torch.set_num_threads(1)
    readers = all_readers()
    age_heap()
    while (job := pipe.recv()) is not None:
        name, files, request = job
        begin = time.process_time()
        error = ""
        try:
            for path in files:
                readers[name](path, indices_for(counts[path], request))
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        pipe.send((time.process_time() - begin, error))


def race(groups: dict[str, list[str]], counts: dict[str, int], processes: int, rounds: int) -> dict[str, Any]:
    names = list(all_readers())
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(processes):
        near, far = context.Pipe()
        worker = context.Process(target=serve, args=(far, counts), daemon=True)
        worker.start()
        pipes.append(near)
        workers.append(worker)
    result: dict[str, Any] = {}
    for group, files in groups.items():
        for request in REQUESTS:
            wall: dict[str, list[float]] = {name: [] for name in names}
            cpu: dict[str, list[float]] = {name: [] for name in names}
            failed: dict[str, str] = {}
            for turn in range(rounds + 1):
                order = names[turn % len(names) :] + names[: turn % len(names)]
                for name in order if turn % 2 else reversed(order):
                    begin = time.perf_counter()
                    for pipe in pipes:
                        pipe.send((name, files, request))
                    answers = [pipe.recv() for pipe in pipes]
                    seconds = time.perf_counter() - begin
                    if any(error for _, error in answers):
                        failed[name] = answers[0][1]
                    elif turn:  # the first warms up
                        wall[name].append(processes * len(files) / seconds)
                        cpu[name].append(processes * len(files) / sum(spent for spent, _ in answers))
            ran = [name for name in names if name not in failed]
            row: dict[str, Any] = {
                name: {"per_second": quartiles(wall[name]), "per_cpu_second": quartiles(cpu[name])} for name in ran
            }
            for name in ran[1:]:
                for clock, speeds in (("wall", wall), ("cpu", cpu)):
                    ratios = [a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)]
                    row[name][f"ours_is_times_{clock}"] = quartiles(ratios)
            result.setdefault(group, {"clips": len(files)})[request] = row | ({"failed": failed} if failed else {})
            shown = "  ".join(
                f"{name} {row[name]['per_cpu_second']['median']:.1f}"
                + (f" (×{row[name]['ours_is_times_cpu']['median']:.2f})" if name != "ours" else "")
                for name in ran
            )
            print(f"{processes} process(es) {group:28}{request:12}{shown}", flush=True)
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    return result


def agreement(groups: dict[str, list[str]], counts: dict[str, int]) -> dict[str, Any]:
    """Of each reader's sparse frames: the share of clips that equal ours, the mean distance of the rest."""
    result: dict[str, Any] = {}
    for name, reader in all_readers().items():
        equal, distances = 0, []
        files = [path for group in groups.values() for path in group]
        for path in files:
            indices = indices_for(counts[path], "sparse 8")
            try:
                theirs = reader(path, indices)
            except Exception as error:
                distances.append(f"{Path(path).name}: {error}"[:120])
                continue
            mine = ours(path, indices)
            equal += np.array_equal(mine, theirs)
            if theirs.shape != mine.shape:
                distances.append(f"{Path(path).name}: shape {theirs.shape}")
            elif not np.array_equal(mine, theirs):
                distances.append(float(np.abs(mine.astype(int) - theirs).mean()))
        far = [value for value in distances if isinstance(value, float)]
        result[name] = {
            "equal": f"{equal} of {len(files)}",
            "mean_distance": round(statistics.mean(far), 2) if far else 0,
            "largest_mean_distance": round(max(far), 2) if far else 0,
            "other": [value for value in distances if isinstance(value, str)],
        }
    return result


def goals(result: dict[str, Any]) -> dict[str, Any]:
    """Where ours is slower than a rival, by CPU time and by wall time; and whether it leads on H.264 long GOP."""
    slower: list[str] = []
    leads: dict[str, float] = {}
    for processes, groups in result.get("readers", {}).items():
        for group, requests in groups.items():
            for request in REQUESTS:
                for rival in ("torchcodec", "decord2"):
                    row = requests[request].get(rival)
                    for clock in ("cpu", "wall") if row else ():
                        ratio = row[f"ours_is_times_{clock}"]["median"]
                        if ratio < 1:
                            slower.append(f"{processes}, {group}, {request}: {ratio} × {rival} by {clock} time")
                        if group.startswith("h264 long GOP"):
                            leads[f"{processes}, {group}, {request}, {rival}, {clock}"] = ratio
    return {
        "slower than a rival": slower,
        "h264 long GOP, times faster than": leads,
        "stores, times the originals": {
            store: {
                group: {request: row[request][store]["times_originals"] for request in REQUESTS}
                for group, row in result.get("stores", {}).items()
            }
            for store in ("shards jpeg", "shards uint8", "shards h264", "pack jpeg", "pack uint8")
        },
        "loader over bare steps": {
            group: row["loader_over_bare_steps"] for group, row in result.get("loader", {}).items()
        },
    }


def renewed(before: dict[str, Any], now: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """An earlier run's result in which some parts are measured anew, with the command and condition of each."""
    keys = ("device", "versions", "condition", "command")
    changed = [key for key in ("device", "versions") if before[key] != now[key]]
    if changed:
        raise SystemExit(f"the file's {' and '.join(changed)} are others than this run's; write to another file")
    again = before.get("measured_again", {}) | {part: {key: now[key] for key in keys[2:]} for part in parts}
    return before | {key: value for key, value in now.items() if key not in keys} | {"measured_again": again}


# Stores, index, loader, memory


def stores(groups: dict[str, list[str]], folder: Path, rounds: int) -> dict[str, Any]:
    rows = [(path, group) for group, files in groups.items() for path in files]
    lines = "".join(f"{path},{group.replace(',', '')}\n" for path, group in rows)
    (folder / "list.csv").write_text("path,label\n" + lines)
    originals = Manifest.read(folder / "list.csv")
    manifests = {"originals": originals}
    sizes = {"originals": sum(os.path.getsize(path) for path, _ in rows)}
    for format in ("jpeg", "uint8", "h264"):
        report = write_shards(originals, folder / f"shards-{format}", format=format, workers=1)
        manifests[f"shards {format}"], sizes[f"shards {format}"] = Manifest.read(report.path), report.bytes
    for kind in ("jpeg", "uint8"):
        packed = pack(originals, folder / f"{kind}.pack", format=kind, workers=1)
        manifests[f"pack {kind}"], sizes[f"pack {kind}"] = Manifest.read(packed.path), packed.bytes
    result: dict[str, Any] = {}
    for group in groups:
        of_group = [number for number, (_, name) in enumerate(rows) if name == group]
        for request in REQUESTS:
            speeds: dict[str, list[float]] = {name: [] for name in manifests}
            for turn in range(rounds + 1):
                names = list(manifests)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    begin = time.process_time()
                    for number in of_group:
                        with manifests[name].open(number) as video:
                            video.read(indices_for(video.num_frames, request))
                    if turn:
                        speeds[name].append(len(of_group) / (time.process_time() - begin))
            result.setdefault(group, {})[request] = {
                name: {
                    "per_cpu_second": quartiles(values),
                    "times_originals": round(
                        statistics.median(a / b for a, b in zip(values, speeds["originals"], strict=True)), 2
                    ),
                }
                for name, values in speeds.items()
            }
            shown = {name: one["times_originals"] for name, one in result[group][request].items()}
            print(f"stores: {group:28}{request:12}{shown}", flush=True)
    return {"megabytes": {name: round(size / 1e6, 1) for name, size in sizes.items()}, "groups": result}


def index_costs(groups: dict[str, list[str]], folder: Path, rounds: int) -> dict[str, Any]:
    sources = {group: files[-1] for group, files in groups.items()}
    h264 = sources["h264 long GOP, rendered"]
    with VideoFile(h264) as video:
        times = -(-7500 // video.num_frames)
    for suffix, source in (
        ("mp4", h264),
        ("mkv", h264),
        ("flv", h264),
        ("ts", h264),
        ("webm", sources["vp9, rendered"]),
        ("avi", sources["mpeg4, rendered"]),
    ):
        sources[f"5 minutes, {suffix}"] = lengthen(source, folder / f"long.{suffix}", times)
    result: dict[str, Any] = {}
    for name, path in sources.items():
        with VideoFile(path) as video:
            index = video.index
        count = index.num_frames
        near = min(count - 1, int(count * 0.6) + 63)
        wanted = [max(0, near - 8 * number) for number in range(8)]  # eight frames of one segment
        seconds: dict[str, list[float]] = {"scanned": [], "kept": []}
        for _ in range(rounds):
            for label, given in (("scanned", None), ("kept", index)):
                begin = time.process_time()
                with VideoFile(path, index=given) as video:
                    video.read(wanted)
                seconds[label].append(time.process_time() - begin)
        result[name] = {
            "packets": len(index.pts),
            "segment_read_milliseconds": {
                label: round(1e3 * statistics.median(values), 2) for label, values in seconds.items()
            },
            "times_faster": round(statistics.median(seconds["scanned"]) / statistics.median(seconds["kept"]), 2),
        }
        print(f"index: {name:28}{result[name]}", flush=True)
    return result


def clips_of(manifest: Manifest) -> TrainingClips:
    return TrainingClips(
        manifest, num_frames=8, size=SIDE, data=DataConfig(), augmentation=AugmentationConfig(), seed=0
    )


class Ready(torch.utils.data.Dataset[Any]):
    """Clips that cost nothing: what is left is handing them from process to process."""

    def __init__(self) -> None:
        self.clip = torch.zeros((8, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"clip": self.clip, "label": 0, "index": draw.video, "available": 8}


def clocked(work: Iterable[object]) -> tuple[float, float]:
    """Seconds that going through it takes, and this process's CPU seconds in them."""
    begin, spent = time.perf_counter(), time.process_time()
    for _ in work:
        pass
    return time.perf_counter() - begin, time.process_time() - spent


def through_loader(clips: Any, batches: list[list[Draw]]) -> tuple[float, float]:
    """As :func:`clocked`, for all batches from one loader process that is under way; CPU seconds of both processes."""
    first = batches[:4]
    iterator: Any = iter(ClipLoader(clips, batch_sampler=[*first, *batches], num_workers=1))
    clock = ~iterator._workers[0].pid << 3 | 2  # as Linux names that process's CPU time
    for _ in first:
        next(iterator)
    before = time.clock_gettime(clock)
    wall, own = clocked(next(iterator) for _ in batches)
    return wall, own + time.clock_gettime(clock) - before


def loader_overhead(
    groups: dict[str, list[str]], folder: Path, rounds: int, seconds_each: float = 1.0
) -> dict[str, Any]:
    """A loader process's seconds a clip beside those of the bare steps: read, crop and resize, flip every other.

    "handing over" is a loader whose clips cost nothing: copying 1.2 MB a clip to where the main process sees it, and
    telling it so. CPU seconds are those of both processes together.
    """
    result: dict[str, Any] = {}
    for group, files in groups.items():
        listing = folder / f"{len(result)}.csv"
        listing.write_text("path,label\n" + "".join(f"{path},{number % 2}\n" for number, path in enumerate(files)))
        milliseconds = loader_times(clips_of(Manifest.read(listing)), files, rounds, seconds_each)

        def over(way: str, bare: str, clock: int, of: dict[str, list[tuple[float, float]]] = milliseconds) -> float:
            return round(statistics.median(a[clock] / b[clock] for a, b in zip(of[way], of[bare], strict=True)) - 1, 3)

        result[group] = {
            "milliseconds_a_clip": {way: quartiles([wall for wall, _ in of]) for way, of in milliseconds.items()},
            "cpu_milliseconds_a_clip": {way: quartiles([cpu for _, cpu in of]) for way, of in milliseconds.items()},
            "handing_over_milliseconds": round(statistics.median(wall for wall, _ in milliseconds["handing over"]), 3),
            "items_over_bare_steps": over("items", "read, crop, resize", 0),
            "loader_over_bare_steps": over("loader", "read, crop, resize", 0),
            "loader_over_bare_steps_cpu": over("loader", "read, crop, resize", 1),
            "loader_over_reading_alone": over("loader", "read", 0),
        }
        shown = {key: value for key, value in result[group].items() if "over" in key}
        print(f"loader: {group:28}{shown}", flush=True)
    return result


def loader_times(
    clips: TrainingClips, files: list[str], rounds: int, seconds_each: float
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds a clip, and CPU milliseconds, of each way and round."""
    once, _ = clocked(clips[Draw(number, number)] for number in range(len(files)))
    draws = [Draw(number % len(files), number) for number in range(max(4, round(seconds_each / once)) * len(files))]
    batches = [draws[start : start + 8] for start in range(0, len(draws), 8)]

    def read(draw: Draw) -> np.ndarray:
        with VideoFile(files[draw.video]) as video:
            return video.read(clips.sample(video.num_frames, rng=np.random.default_rng([0, 1, draw.number])))

    def bare_steps(draw: Draw) -> None:
        # What the clip is made of, with the clip's own draws: how large a crop is decides what resizing costs.
        rng = np.random.default_rng([0, 1, draw.number])
        with VideoFile(files[draw.video]) as video:
            frames = video.read(clips.sample(video.num_frames, rng=rng))
        augmentation = clips.augmentation
        box = train_box(
            *frames.shape[1:3],
            rng,
            position=augmentation.position,
            scales=augmentation.scales,
            max_distort=augmentation.max_distort,
        )
        crop_resize(frames, box, SIDE, mirrored=rng.random() < 0.5)

    milliseconds: dict[str, list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):
        for way, times in (
            ("read", clocked(map(read, draws))),
            ("read, crop, resize", clocked(map(bare_steps, draws))),
            ("items", clocked(clips[draw] for draw in draws)),
            ("loader", through_loader(clips, batches)),
            ("handing over", through_loader(Ready(), batches)),
        ):
            if turn:  # the first warms up
                milliseconds.setdefault(way, []).append((1e3 * times[0] / len(draws), 1e3 * times[1] / len(draws)))
    return milliseconds


class Watched(torch.utils.data.Dataset[Any]):
    """Training clips, with the process's own memory every so often."""

    def __init__(self, clips: TrainingClips) -> None:
        self.clips = clips
        self.seen = 0

    def __getitem__(self, draw: Draw) -> tuple[float, float]:
        self.clips[draw]
        self.seen += 1
        return own_memory() if self.seen % 500 == 0 else (0.0, 0.0)


def own_memory() -> tuple[float, float]:
    """Megabytes: anonymous memory, and the most there ever was (files included)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1e3, int(fields["VmHWM"].split()[0]) / 1e3


def memory(groups: dict[str, list[str]], folder: Path, samples: int) -> dict[str, Any]:
    files = [path for group in groups.values() for path in group]
    listing = folder / "memory.csv"
    listing.write_text("path,label\n" + "".join(f"{path},{number % 2}\n" for number, path in enumerate(files)))
    watched = Watched(clips_of(Manifest.read(listing)))
    order = np.random.default_rng(0).integers(0, len(files), samples)
    draws = [Draw(int(video), number) for number, video in enumerate(order)]
    loader = DataLoader(watched, sampler=draws, batch_size=None, num_workers=1)  # type: ignore[arg-type]
    marks = [(round(now, 1), round(peak, 1)) for now, peak in loader if now]
    print(f"memory: {marks[0]} MB after 500 samples, {marks[-1]} after {samples}", flush=True)
    return {
        "samples": samples,
        "videos": len(files),
        "anonymous_megabytes_every_500": [now for now, _ in marks],
        "peak_megabytes_every_500": [peak for _, peak in marks],
        "peak_growth_after_first_1000": round(marks[-1][1] / marks[min(1, len(marks) - 1)][1] - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with overhead_adl, handwash12 and clips (left out without)")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--clips", type=int, default=8, help="clips per group (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="of the above (default: all); others stay in the file"
    )
    parser.add_argument("--groups", nargs="+", default=[""], help="clips whose group's name has one of these in it")
    arguments = parser.parse_args()
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data {arguments.data}: no such folder")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: no folder {arguments.output.parent}")

    torch.set_num_threads(1)
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [kind for kind in KINDS if any(part in kind for part in arguments.groups)]
        rendered = render(folder, arguments.clips, arguments.seed) if chosen or "index" in arguments.parts else {}
        groups = {kind: rendered[kind] for kind in chosen}
        if arguments.data is not None:
            for name, files in real(arguments.data, arguments.clips, arguments.seed).items():
                if any(part in name for part in arguments.groups):
                    groups[name] = [str(path.resolve()) for path in files]
        if not groups:
            parser.error(f"--groups {' '.join(arguments.groups)}: no group has that in its name")
        counts = counts_of(groups)
        age_heap()
        result: dict[str, Any] = {
            "what": "videos a second from path to RGB frames, opening included; medians and quartiles over rounds in "
            "which the readers take turns; ratios are ours over theirs, round by round",
            "goals": {},
            "device": {"processor": processor(), "system": platform.system(), "cores": os.cpu_count()},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "av": av.__version__,
                "av's FFmpeg": av.ffmpeg_version_info,
                "numpy": np.__version__,
                **rivals()[1],
            },
            "condition": {
                "threads": "one decoder thread for every reader",
                "clips": {group: len(files) for group, files in groups.items()},
                "rounds": arguments.rounds,
                "frames_in_a_clip": {group: quartiles([counts[p] for p in files]) for group, files in groups.items()},
            },
            "command": f"python benchmarks/loader.py --data ../shared/data --clips {arguments.clips} "
            f"--rounds {arguments.rounds} --samples {arguments.samples} --seed {arguments.seed}"
            + f"{'' if arguments.parts == PARTS else ' --parts ' + ' '.join(arguments.parts)} --output …",
        }
        if "readers" in arguments.parts:
            result["agreement"] = agreement(groups, counts)
        for processes in (1, 2) if "readers" in arguments.parts else ():
            result.setdefault("readers", {})[f"{processes} process" + "es" * (processes > 1)] = race(
                groups, counts, processes, arguments.rounds
            )
            load.append(os.getloadavg())
        if "stores" in arguments.parts:
            kept = stores(groups, folder, min(3, arguments.rounds))
            result["stores"], result["stores_megabytes"] = kept["groups"], kept["megabytes"]
        if "index" in arguments.parts:
            result["index"] = index_costs(rendered, folder, arguments.rounds)
        if "loader" in arguments.parts:
            result["loader"] = loader_overhead(groups, folder, 8)
        if "memory" in arguments.parts:
            quick = {name: files for name, files in groups.items() if name.endswith(("adl", "handwash12"))} or groups
            result["memory"] = memory(quick, folder, arguments.samples)
        load.append(os.getloadavg())
        result["condition"]["load_average_1_minute"] = [round(one[0], 2) for one in load]
    if arguments.parts != PARTS and arguments.output.is_file():
        result = renewed(json.loads(arguments.output.read_text()), result, arguments.parts)
    result["goals"] = goals(result)
    print(json.dumps(result["goals"], indent=1, ensure_ascii=False), file=sys.stderr)
    arguments.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
