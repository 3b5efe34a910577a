"""How much faster the reader is than plain decoding, on real and rendered clips; same frames, bit for bit.

Eight frames, the middles of eight equal segments, are read from each clip in three ways, by turns:

ours   ``clipwise.data.decode.VideoFile``: opening, packet index and reading all counted
N1     decode and convert every frame (``frame.to_ndarray(format="rgb24")``), keep eight
N2     decode in order, convert only the eight, stop after the last; it is told their numbers, which without an
       index it could not know

Every decoder runs on one thread. ``--cores 1`` holds the whole process to one core: PyAV's conversion, which by
itself starts a thread per core for every frame, then uses one as well, the strict comparison. ``--cores 0`` leaves
PyAV as a user finds it. Times are CPU seconds of the process, which a busy neighbour does not spoil; wall times
are recorded beside them. ``--short-side 256`` also resizes every frame that is converted (N1: all, the others:
the eight), uint8, by torch.

    python benchmarks/reader.py --data ../shared/data \\
        --output benchmarks/results/reader_cpu_1thread_sparse8.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.nn import functional

from clipwise.data.decode import VideoFile

SEGMENTS = 8
Finish = Callable[[np.ndarray], np.ndarray]  # (T, H, W, 3) uint8 → the same, resized or as it is
Reader = Callable[[Path, list[int], Finish], np.ndarray]


def as_it_is(frames: np.ndarray) -> np.ndarray:
    return frames


def to_short_side(side: int) -> Finish:
    def resize(frames: np.ndarray) -> np.ndarray:
        height, width = frames.shape[1:3]
        scale = side / min(height, width)
        size = (round(height * scale), round(width * scale))
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
        resized = functional.interpolate(pictures, size, mode="bilinear", antialias=True)
        return np.asarray(resized.permute(0, 2, 3, 1).numpy())

    return resize


def ours(path: Path, indices: list[int], finish: Finish) -> np.ndarray:
    with VideoFile(path) as video:
        return finish(video.read(indices))


def n1(path: Path, indices: list[int], finish: Finish) -> np.ndarray:
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [finish(frame.to_ndarray(format="rgb24")[None]) for frame in container.decode(stream)]
    return np.concatenate([frames[index] for index in indices])


def n2(path: Path, indices: list[int], finish: Finish) -> np.ndarray:
    wanted, last, frames = set(indices), max(indices), {}
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number == last:
                break
    return finish(np.stack([frames[index] for index in indices]))


READERS: dict[str, Reader] = {"ours": ours, "n1": n1, "n2": n2}


# Rendered clips


def texture(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """(height, width, 3) in 0–255 with the spectrum of natural pictures: amplitude falling as one over
    frequency.
    """
    rows = np.fft.fftfreq(height)[:, None]
    columns = np.fft.fftfreq(width)[None, :]
    fall = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / max(height, width))
    noise = np.fft.fft2(generator.normal(size=(height, width, 3)), axes=(0, 1))
    field = np.fft.ifft2(noise * fall[..., None], axes=(0, 1)).real
    grey = field.mean(axis=2, keepdims=True)
    field = 0.6 * grey + 0.4 * field  # colours of a scene go together
    low, high = np.percentile(field, [2, 98])
    return ((field - low) / (high - low) * 220 + 18).clip(0, 255)


def scene(count: int, width: int, height: int, seed: int) -> Iterator[np.ndarray]:
    """A textured background under an unsteady camera, five textured things moving over it, light that
    varies, and the noise of a sensor."""
    generator = np.random.default_rng(seed)
    margin = 48
    background = texture(height + 2 * margin, width + 2 * margin, generator)
    things = []
    for _ in range(5):
        side = generator.integers(height // 6, height // 2, size=2)
        patch = texture(int(side[0]), int(side[1]), generator)
        rows, columns = np.mgrid[-1 : 1 : side[0] * 1j, -1 : 1 : side[1] * 1j]
        mask = (np.hypot(rows, columns) < 1)[..., None]
        start = generator.uniform(0, 1, size=2)
        speed = generator.uniform(-0.012, 0.012, size=2)
        things.append((patch, mask, start, speed))
    phase = generator.uniform(0, 6.28, size=4)
    for moment in range(count):
        down = int(margin + 30 * np.sin(moment / 31 + phase[0]) + 2 * np.sin(moment / 2.3 + phase[1]))
        right = int(margin + 40 * np.sin(moment / 43 + phase[2]) + 2 * np.sin(moment / 2.9 + phase[3]))
        image = background[down : down + height, right : right + width].copy()
        for patch, mask, start, speed in things:
            place = np.abs((start + speed * moment) % 2 - 1)  # back and forth
            top = int(place[0] * (height - patch.shape[0]))
            left = int(place[1] * (width - patch.shape[1]))
            spot = image[top : top + patch.shape[0], left : left + patch.shape[1]]
            np.copyto(spot, patch, where=mask)
        image *= 1 + 0.05 * np.sin(moment / 40)
        image += generator.normal(scale=2.0, size=(height, width, 1))
        yield image.clip(0, 255).astype(np.uint8)


KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264 GOP 250 mp4, rendered": ("mp4", "libx264", {"g": "250"}),
    "h264 GOP 12 mp4, rendered": ("mp4", "libx264", {"g": "12"}),
    "vp9 webm, rendered": ("webm", "libvpx-vp9", {"g": "250", "cpu-used": "5", "b": "600k"}),
    "mpeg4 avi, rendered": ("avi", "mpeg4", {"g": "12", "b": "1200k"}),
}
LONG_GOP = "h264 GOP 250 mp4, rendered"


def render(folder: Path, clips: int, seed: int) -> dict[str, list[Path]]:
    """``clips`` scenes of 2–10 s, 320×240 and 340×256, 25 and 30 frames a second, each in every codec."""
    groups: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for clip in range(clips):
        width, height = ((320, 240), (340, 256))[clip % 2]
        rate = (25, 30)[clip // 2 % 2]
        seconds = 2 + 8 * clip / max(1, clips - 1)
        outputs = []
        for kind, (extension, codec, options) in KINDS.items():
            path = folder / f"{clip:02d}_{len(outputs)}.{extension}"
            container = av.open(str(path), "w")
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            outputs.append((container, stream))
            groups[kind].append(path)
        for image in scene(round(seconds * rate), width, height, seed + clip):
            for container, stream in outputs:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame))
        for container, stream in outputs:
            container.mux(stream.encode(None))
            container.close()
        print(f"\rrendered {clip + 1}/{clips}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return groups


def real(data: Path, clips: int, seed: int) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for folder in ("overhead_adl", "handwash12"):
        files = sorted((data / folder).glob("*/*.mp4"))
        groups[f"h264 mp4, {folder}"] = sorted(random.Random(seed).sample(files, min(clips, len(files))))
    groups["h264 mp4, clips"] = sorted((data / "clips").glob("*.mp4"))
    groups["mpeg4 avi, clips"] = [path for path in sorted((data / "clips").glob("*.avi")) if path.stem != "tree"]
    groups["cinepak avi, clips"] = sorted((data / "clips").glob("tree.avi"))
    return {name: files for name, files in groups.items() if files}


# Measuring


def measure(path: Path, repeats: int, finish: Finish) -> dict[str, Any]:
    """CPU and wall seconds of each reader, median of ``repeats`` runs by turns; the frames must be equal."""
    with VideoFile(path) as video:
        count = video.num_frames
    indices = [int((segment + 0.5) * count / SEGMENTS) for segment in range(SEGMENTS)]
    cpu: dict[str, list[float]] = {name: [] for name in READERS}
    wall: dict[str, list[float]] = {name: [] for name in READERS}
    orders = list(itertools.permutations(READERS))  # who comes after whom decides what memory is still at hand
    for turn in range(repeats + 1):
        frames = {}
        for name in orders[turn % len(orders)]:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            frames[name] = READERS[name](path, indices, finish)
            if turn:  # the first brings the file into memory
                cpu[name].append(time.process_time() - begin_cpu)
                wall[name].append(time.perf_counter() - begin)
        for name in ("n1", "n2"):
            if not np.array_equal(frames["ours"], frames[name]):
                raise SystemExit(f"{path.name}: frames {indices} differ from those of {name}")
    return {
        "file": path.name,
        "frames": count,
        "cpu_seconds": {name: statistics.median(times) for name, times in cpu.items()},
        "wall_seconds": {name: statistics.median(times) for name, times in wall.items()},
    }


def age_heap() -> None:
    """Bring the C library's allocator to where a long-running loader worker's is: having freed large blocks, it keeps
    memory instead of asking the system for every frame anew, which would cost each reader more than its conversions."""
    for megabytes in (2, 8, 24, 31):
        np.ones(megabytes * 2**20, np.uint8)


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"q1": round(float(low), 3), "median": round(float(middle), 3), "q3": round(float(high), 3)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "clips": len(rows),
        "frames_per_clip": quartiles([row["frames"] for row in rows]),
    }
    for base in ("n1", "n2"):
        for clock in ("cpu", "wall"):
            times = [row[f"{clock}_seconds"] for row in rows]
            result[f"{base}_over_ours_{clock}"] = quartiles([time[base] / time["ours"] for time in times])
    for name in READERS:
        total = sum(row["cpu_seconds"][name] for row in rows)
        result[f"videos_per_cpu_second_{name}"] = round(len(rows) / total, 1)
    return result


def show(name: str, group: dict[str, Any]) -> None:
    against = [group[f"{base}_over_ours_cpu"] for base in ("n1", "n2")]
    cells = "   ".join(f"{one['median']:.3f} ({one['q1']:.2f}–{one['q3']:.2f})" for one in against)
    print(f"{name:30} {group['clips']:5}   {cells}", flush=True)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with overhead_adl, handwash12 and clips (left out without)")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--clips", type=int, default=12, help="clips per group (default: %(default)s)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=6,
        help="timed runs of each reader, six orders of the three in turn (default: %(default)s)",
    )
    parser.add_argument("--cores", type=int, default=1, help="cores the process may use; 0: all (default: 1)")
    parser.add_argument(
        "--short-side", type=int, default=0, help="also resize what is converted to this short side (default: do not)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data {arguments.data}: no such folder")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: no folder {arguments.output.parent}")

    with tempfile.TemporaryDirectory() as folder:
        groups = render(Path(folder), arguments.clips, arguments.seed)
        if arguments.data is not None:
            groups |= real(arguments.data, arguments.clips, arguments.seed)
        age_heap()
        torch.set_num_threads(1)
        finish = to_short_side(arguments.short_side) if arguments.short_side else as_it_is
        everything = os.sched_getaffinity(0)
        if arguments.cores:
            os.sched_setaffinity(0, sorted(everything)[-arguments.cores :])
        result: dict[str, Any] = {
            "what": "8 middle-of-segment frames of each clip as RGB; N1 decodes and converts all, N2 decodes in order, "
            "converts the wanted and stops after the last; ratios are their time over ours, per clip",
            "condition": {
                "decoder_threads": 1,
                "resized_to_short_side": arguments.short_side or None,
                "cores_allowed": len(os.sched_getaffinity(0)),
                "clock": "CPU seconds of the process; wall seconds beside them",
                "runs": f"{arguments.repeats} by turns after one warm-up; median per clip, quartiles over clips",
                "ours_includes": "opening, packet index and reading",
                "heap": "aged: large blocks were freed before, as in a long-running worker",
            },
            "device": {"processor": processor(), "system": platform.system(), "cores": len(everything)},
            "versions": {
                "python": platform.python_version(),
                "av": av.__version__,
                "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
                "numpy": np.__version__,
            },
            "command": f"python benchmarks/reader.py --data ../shared/data --clips {arguments.clips} "
            f"--repeats {arguments.repeats} --cores {arguments.cores} --short-side {arguments.short_side} "
            f"--seed {arguments.seed} --output …",
            "bit_identical": True,  # or measure() would have ended the run
            "groups": {},
            "codecs": {},
            "clips": {},
        }
        print(f"{'group':30} clips   N1/ours   N2/ours   (median CPU time, quartiles)")
        for name, files in groups.items():
            rows = [measure(path, arguments.repeats, finish) for path in files]
            result["clips"][name] = rows
            result["groups"][name] = summary(rows)
            show(name, result["groups"][name])
    print("by codec")
    for codec in dict.fromkeys(name.split()[0] for name in groups):
        rows = [row for name in groups if name.split()[0] == codec for row in result["clips"][name]]
        result["codecs"][codec] = summary(rows)
        show(codec, result["codecs"][codec])
    medians = {codec: one["n2_over_ours_cpu"]["median"] for codec, one in result["codecs"].items()}
    long_gop = result["groups"][LONG_GOP]
    result["goals"] = {
        "long GOP, at least 3 × N1": long_gop["n1_over_ours_cpu"]["median"] >= 3,
        "long GOP, at least 1.25 × N2": long_gop["n2_over_ours_cpu"]["median"] >= 1.25,
        "slower than N2 for no codec": all(median >= 1 for median in medians.values()),
    }
    for goal, met in result["goals"].items():
        print(f"{goal}: {'met' if met else 'NOT met'}")
    arguments.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
