"""How much faster the reader is than plain decoding, on real and rendered clips; same frames, bit for bit.

Eight frames, the middles of eight equal segments, are read from each clip in three ways, by turns:

ours   ``clipwise.data.decode.VideoFile``: opening, packet index and reading all counted
N1     decode and convert every frame (``frame.to_ndarray(format="rgb24")``), keep eight
N2     decode in order, convert only the eight, stop after the last; it is told their numbers, which without an
       index it could not know

Two conditions. ``--cores 0`` is what a user meets: all cores, and PyAV as it is by default, for N1 and N2 alike; its
``to_ndarray`` then starts a thread per core for every frame that it converts. ``--cores 1`` holds the whole process to
one core, and every decoder to one thread: the strict comparison, of work alone. CPU and wall times are both reported,
medians over clips of the ratio to ours, and with them what the clips are like: bits per pixel, and the share of frames
that no other refers to, which is what skipping can gain. "H.264 long GOP" pools all clips with a keyframe every 250
frames or only at the start, rendered and real.

    python benchmarks/reader.py --data ../shared/data --output benchmarks/results/reader_cpu_2cores_sparse8.json
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

from clipwise.data.decode import VideoFile

SEGMENTS = 8
Reader = Callable[[Path, list[int], int | None], np.ndarray]  # path, frame numbers, decoder threads (None: default)


def ours(path: Path, indices: list[int], threads: int | None) -> np.ndarray:
    with VideoFile(path) as video:  # one thread, its default
        return video.read(indices)


def n1(path: Path, indices: list[int], threads: int | None) -> np.ndarray:
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        if threads:
            stream.codec_context.thread_count = threads
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack([frames[index] for index in indices])


def n2(path: Path, indices: list[int], threads: int | None) -> np.ndarray:
    wanted, last, frames = set(indices), max(indices), {}
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        if threads:
            stream.codec_context.thread_count = threads
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number == last:
                break
    return np.stack([frames[index] for index in indices])


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
    return np.asarray(((field - low) / (high - low) * 220 + 18).clip(0, 255))


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
LONG_GOP = ("h264 GOP 250 mp4, rendered", "h264 mp4, overhead_adl", "h264 mp4, handwash12", "h264 mp4, clips")


def render(folder: Path, clips: int, seed: int) -> dict[str, list[Path]]:
    """``clips`` scenes of 2–10 s, 320×240 and 340×256, 25 and 30 frames a second, each in every codec."""
    groups: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for clip in range(clips):
        width, height = ((320, 240), (340, 256))[clip % 2]
        rate = (25, 30)[clip // 2 % 2]
        seconds = 2 + 8 * clip / max(1, clips - 1)
        outputs: list[tuple[Any, Any]] = []
        for kind, (extension, codec, options) in KINDS.items():
            path = folder / f"{clip:02d}_{len(outputs)}.{extension}"
            container = av.open(str(path), "w")
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1  # PyAV would cut each picture into as many slices as there are cores
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


def content(path: Path) -> dict[str, Any]:
    """What decides how much work a clip is, and how much of it can be spared."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        pixels = stream.width * stream.height * len(packets)
    decoded = []
    for skip in ("DEFAULT", "NONREF"):
        with av.open(str(path), metadata_errors="ignore") as container:
            container.streams.video[0].codec_context.skip_frame = skip
            decoded.append(sum(1 for _ in container.decode(video=0)))
    return {
        "size": [stream.width, stream.height],
        "keyframes": sum(packet.is_keyframe for packet in packets),
        "bits_per_pixel": round(8 * sum(packet.size for packet in packets) / pixels, 4),
        "share_not_referred_to": round(1 - decoded[1] / decoded[0], 3),
    }


def measure(path: Path, repeats: int, threads: int | None) -> dict[str, Any]:
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
            frames[name] = READERS[name](path, indices, threads)
            if turn:  # the first brings the file into memory
                cpu[name].append(time.process_time() - begin_cpu)
                wall[name].append(time.perf_counter() - begin)
        for name in ("n1", "n2"):
            if not np.array_equal(frames["ours"], frames[name]):
                raise SystemExit(f"{path.name}: frames {indices} differ from those of {name}")
    return {
        "file": path.name,
        "frames": count,
        **content(path),
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
    result: dict[str, Any] = {"clips": len(rows)}
    for what in ("frames", "keyframes", "bits_per_pixel", "share_not_referred_to"):
        result[what] = quartiles([row[what] for row in rows])
    for base in ("n1", "n2"):
        for clock in ("cpu", "wall"):
            times = [row[f"{clock}_seconds"] for row in rows]
            result[f"{base}_over_ours_{clock}"] = quartiles([time[base] / time["ours"] for time in times])
    for name in READERS:
        total = sum(row["cpu_seconds"][name] for row in rows)
        result[f"videos_per_cpu_second_{name}"] = round(len(rows) / total, 1)
    return result


def show(name: str, group: dict[str, Any]) -> None:
    cells = (group[f"{base}_over_ours_{clock}"] for base in ("n1", "n2") for clock in ("cpu", "wall"))
    ratios = "   ".join(f"{one['median']:6.3f} ({one['q1']:5.2f}–{one['q3']:5.2f})" for one in cells)
    print(f"{name:36}{group['clips']:4}   {ratios}", flush=True)


def goals(result: dict[str, Any]) -> dict[str, Any]:
    """By clock: the medians that the goals speak of, and whether they are met."""
    verdicts: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        long_gop = {
            base: result["pools"]["h264 long GOP"][f"{base}_over_ours_{clock}"]["median"] for base in ("n1", "n2")
        }
        for base, least in (("n1", 3.0), ("n2", 1.25)):
            verdicts[f"H.264 long GOP, at least {least} × {base.upper()}, {clock}"] = {
                "median": long_gop[base],
                "met": long_gop[base] >= least,
                "group by group": {
                    name: result["groups"][name][f"{base}_over_ours_{clock}"]["median"]
                    for name in LONG_GOP
                    if name in result["groups"]
                },
            }
        for what in ("codecs", "groups"):
            name, least = min(
                ((name, one[f"n2_over_ours_{clock}"]["median"]) for name, one in result[what].items()),
                key=lambda pair: pair[1],
            )
            verdicts[f"slower than N2 for none of the {what}, {clock}"] = {
                "least median": least,
                "of": name,
                "met": least >= 1,
            }
    return verdicts


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
        default=12,
        help="timed runs of each reader, six orders of the three in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--cores", type=int, choices=(0, 1), default=0, help="1: one core and one decoder thread; 0: PyAV's defaults"
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
        everything = os.sched_getaffinity(0)
        if arguments.cores:
            os.sched_setaffinity(0, sorted(everything)[-arguments.cores :])
        threads = arguments.cores or None
        result: dict[str, Any] = {
            "what": "8 middle-of-segment frames of each clip as RGB; N1 decodes and converts all, N2 decodes in order, "
            "converts the wanted and stops after the last; ratios are their time over ours, per clip",
            "condition": {
                "cores_allowed": len(os.sched_getaffinity(0)),
                "decoder_threads_n1_n2": threads or "PyAV's default",
                "conversion_threads_n1_n2": "PyAV's default, one per core allowed",
                "runs": f"{arguments.repeats} by turns after one warm-up; median per clip, quartiles over clips",
                "ours_includes": "opening, packet index and reading; one thread",
                "n2_is_given": "the frame numbers, which without an index it could not know",
                "heap": "aged: large blocks were freed before, as in a long-running worker",
            },
            "goals": {},
            "device": {"processor": processor(), "system": platform.system(), "cores": len(everything)},
            "versions": {
                "python": platform.python_version(),
                "av": av.__version__,
                "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
                "numpy": np.__version__,
            },
            "command": f"python benchmarks/reader.py --data ../shared/data --clips {arguments.clips} "
            f"--repeats {arguments.repeats} --cores {arguments.cores} --seed {arguments.seed} --output …",
            "bit_identical": True,  # or measure() would have ended the run
            "pools": {},
            "codecs": {},
            "groups": {},
            "clips": {},
        }
        print(
            f"{'median over clips (quartiles)':40}   N1/ours, CPU           N1/ours, wall          "
            "N2/ours, CPU           N2/ours, wall"
        )
        for name, files in groups.items():
            result["clips"][name] = [measure(path, arguments.repeats, threads) for path in files]
            result["groups"][name] = summary(result["clips"][name])
            show(name, result["groups"][name])
    rows = result["clips"]
    result["pools"]["h264 long GOP"] = summary([row for name in LONG_GOP for row in rows.get(name, [])])
    for codec in dict.fromkeys(name.split()[0] for name in groups):
        result["codecs"][codec] = summary([row for name in groups if name.split()[0] == codec for row in rows[name]])
    for name, one in (result["pools"] | result["codecs"]).items():
        show(name, one)
    result["goals"] = goals(result)
    for goal, verdict in result["goals"].items():
        print(f"{goal}: {'met' if verdict['met'] else 'NOT met'}, {verdict}")
    arguments.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
