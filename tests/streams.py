"""Real sources for the tests of live streams: encoded pictures, HTTP servers that fail on purpose, an RTSP server."""

import contextlib
import http.server
import io
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import PATIENCE
from numpy.typing import NDArray
from PIL import Image

from clipwise.checkpoint import write_card, write_weights
from clipwise.config import ModelConfig, ViewsConfig
from clipwise.data.labels import LabelSpace
from clipwise.models.registry import create_model

DARK, LIGHT = 10, 240
APT = "apt-get install -y --no-install-recommends gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good"


def pictures(levels: Sequence[int], size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """A picture of each brightness, (48, 64, 3), with a lighter line so that it is not one colour."""
    made = [np.full((size[1], size[0], 3), level, np.uint8) for level in levels]
    for picture in made:
        picture[::8] += 15
    return made


def encode(
    target: Path | io.BytesIO,
    levels: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    fps: int = 30,
    container: str = "mp4",
    start: float = 0,
    pixel_aspect: Fraction = Fraction(1),
    rotation: int = 0,
) -> None:
    """H.264 with two B-frames and a keyframe every half second."""
    with av.open(target if isinstance(target, io.BytesIO) else str(target), "w", format=container) as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "veryfast", "bf": "2"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        stream.codec_context.gop_size = fps // 2
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures(levels, size)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = round(start * fps) + number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def transport_stream(levels: Sequence[int], **options: object) -> bytes:
    """The bytes of an MPEG-TS."""
    target = io.BytesIO()
    encode(target, levels, container="mpegts", **options)  # type: ignore[arg-type]
    return target.getvalue()


def with_sound(
    target: Path | io.BytesIO, levels: Sequence[int], *, start: float, sound: float, container: str = "matroska"
) -> None:
    """30 pictures a second from ``start`` on, and silence from 0 s to ``sound``."""
    with av.open(target if isinstance(target, io.BytesIO) else str(target), "w", format=container) as output:
        video = output.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.thread_count = 1
        audio = output.add_stream("mp2", rate=48000, layout="mono")
        packets = []
        for number, picture in enumerate(pictures(levels)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = round(30 * start) + number
            packets += video.encode(frame)
        packets += video.encode()
        for number in range(round(sound * 48000 / 1152)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), layout="mono")
            silence.sample_rate, silence.pts = 48000, 1152 * number
            packets += audio.encode(silence)
        packets += audio.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
"""Of a server: writes to a client."""


class Server:
    """An HTTP server on loopback; ``answers`` are called one after the other, one for each connection, then the last
    again, with what writes to the client and the range asked for."""

    def __init__(self, *answers: Answer, port: int = 0) -> None:
        waiting = list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                with contextlib.suppress(ConnectionError):
                    answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        class Threaded(http.server.ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Threaded(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/live"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def endless(data: bytes, *, then: float = 0) -> Answer:
    """A live answer: it has no length. After the data silence for ``then`` seconds, and the end."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "video/mp2t")
        request.end_headers()
        request.wfile.write(data)
        request.wfile.flush()
        time.sleep(then)

    return answer


def trickling(data: bytes, *, then: bytes, seconds: float) -> Answer:
    """A live answer whose rest comes bit by bit, within so many seconds."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        endless(data)(request)
        for piece in range(50):
            request.wfile.write(then[piece * len(then) // 50 : (piece + 1) * len(then) // 50])
            time.sleep(seconds / 50)

    return answer


def jpegs(levels: Sequence[int], *, fps: float) -> Answer:
    """A live answer of JPEGs one after the other, as network cameras give them: nothing tells their times."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        for picture in pictures(levels):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"
            request.wfile.write(head.encode() + file.getvalue() + b"\r\n")
            time.sleep(1 / fps)

    return answer


def recorded(data: bytes, *, breaks_after: int | None = None) -> Answer:
    """A file's answer, with its length and by ranges; it may break off."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        request.send_response(206 if wanted else 200)
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(data) - first))
        if wanted:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        request.wfile.write(data[first:breaks_after])

    return answer


_RTSP = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if len(sys.argv) == 1:
    missing = [name for name in ("matroskademux", "rtph264pay") if Gst.ElementFactory.find(name) is None]
    sys.exit(f"no {missing}" if missing else 0)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[2])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(f"( filesrc location={sys.argv[1]} ! matroskademux ! rtph264pay name=pay0 config-interval=-1 )")
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""
_SYSTEM_PYTHON = "/usr/bin/python3"


def need_rtsp_server() -> None:
    """Skip where Debian's GStreamer RTSP server is not installed."""
    try:
        done = subprocess.run([_SYSTEM_PYTHON, "-c", _RTSP], capture_output=True, text=True, timeout=PATIENCE)
        reason = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except OSError as error:
        reason = [str(error)]
    if reason is not None:
        pytest.skip(f"needs GStreamer's RTSP server ({''.join(reason)}); as root: {APT}")


@contextlib.contextmanager
def rtsp_server(video: Path, port: int = 0) -> Iterator[int]:
    """Serve an H.264 Matroska file at ``rtsp://127.0.0.1:PORT/live``, at its own speed and for each client from its
    start; at the end of the block the server is killed."""
    process = subprocess.Popen(
        [_SYSTEM_PYTHON, "-c", _RTSP, str(video), str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def light_network(folder: Path) -> Path:
    """A checkpoint that tells light pictures from dark ones: each layer takes means, and a dark picture, below the mean
    that is subtracted, is nothing after the first ReLU."""
    options = {"base_width": 16}
    model = create_model("tsn_resnet18", num_classes=2, num_frames=1, **options)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 4:
                weight.fill_(1 / weight[0].numel())
        model.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand_as(model.fc.weight))
        model.fc.bias.copy_(torch.tensor([3.0, -3.0]))
    folder.mkdir()
    config = ModelConfig(name="tsn_resnet18", num_frames=1, weights=None, options=options)
    write_card(folder, config, LabelSpace.of(["dark", "light"]), ViewsConfig(size=32))
    write_weights(model.eval(), folder / "best.safetensors")
    return folder
