"""What packets tell by themselves. Cinepak: a picture that needs no other is known as such, and only these begin."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from clipwise.data.bitstream import whole_strips
from clipwise.data.decode import VideoFile

SIZE = 16, 8  # width, height: two strips of one row of blocks
FULL = 256 * 6
CODEBOOKS = [(0x2000, FULL), (0x2200, FULL)]
INTRA = [*CODEBOOKS, (0x3000, 20)]  # which blocks are told how, and a byte for each or four


def strip(chunks: list[tuple[int, int]], *, kind: int = 0x1000, top: int = 0, lower: int = 4, right: int = 16) -> bytes:
    body = b"".join(struct.pack(">2H", name, 4 + size) + bytes(size) for name, size in chunks)
    return struct.pack(">6H", kind, 12 + len(body), top, 0, lower, right) + body


def packet(*strips: bytes) -> bytes:
    body = b"".join(strips)
    return bytes([0]) + (10 + len(body)).to_bytes(3, "big") + struct.pack(">3H", *SIZE, len(strips)) + body


@pytest.mark.parametrize(
    "strips",
    [
        (strip(INTRA), strip(INTRA)),
        (strip(INTRA), strip(INTRA, top=4, lower=8)),  # counted from the picture's top
        (strip([*CODEBOOKS, (0x3200, 8)], lower=8),),
    ],
)
def test_cinepak_picture_that_tells_all(strips: tuple[bytes, ...]) -> None:
    assert whole_strips(packet(*strips), *SIZE) == len(strips)
    assert whole_strips(memoryview(packet(*strips)), *SIZE) == len(strips)
    assert whole_strips(packet(*strips), 13, 5) == len(strips)  # blocks go over the edges


@pytest.mark.parametrize(
    "strips",
    [
        (strip(INTRA, kind=0x1100), strip(INTRA)),
        (strip(INTRA), strip(INTRA, kind=0x1100)),
        (strip(INTRA),),  # the lower half is left as it was
        (strip(INTRA), strip(INTRA, top=6, lower=8)),
        (strip(INTRA, right=12), strip(INTRA)),
        (strip([(0x2000, FULL - 6), (0x2200, FULL), (0x3000, 20)], lower=8),),  # an entry is left as it was
        (strip([(0x2100, FULL), (0x2200, FULL), (0x3000, 20)], lower=8),),
        (strip([(0x2000, FULL), (0x3000, 20)], lower=8),),
        (strip([*CODEBOOKS, (0x3100, 20)], lower=8),),  # blocks are left out
        (strip([*CODEBOOKS, (0x3000, 7)]), strip(INTRA)),  # less than a byte for each
        (strip([*CODEBOOKS, (0x3200, 7)], lower=8),),
        (strip(CODEBOOKS, lower=8),),
        (strip([(0x2400, 1024), (0x2600, 1024), (0x3000, 20)], lower=8),),  # in grey, or 256 colours
        # What sticks out is not decoded at all.
        (strip(INTRA, right=20), strip(INTRA)),
        (strip(INTRA), strip(INTRA, lower=8)),
        (strip(INTRA, lower=0), strip(INTRA, lower=8)),
        (),
    ],
)
def test_cinepak_picture_that_may_need_another(strips: tuple[bytes, ...]) -> None:
    assert whole_strips(packet(*strips), *SIZE) == 0


def test_cinepak_packet_cut_off_anywhere() -> None:
    whole = packet(strip(INTRA), strip(INTRA))
    for length in range(len(whole)):
        assert not whole_strips(whole[:length], *SIZE)
        assert not whole_strips(length.to_bytes(4, "big") + whole[4:length], *SIZE)


def test_cinepak_strips_that_do_not_count() -> None:
    """The decoder goes by the header's number."""
    whole = packet(strip(INTRA), strip(INTRA))
    assert not whole_strips(whole[:8] + (1).to_bytes(2, "big") + whole[10:], *SIZE)
    many = packet(*[strip(INTRA)] * 40)
    assert whole_strips(many, 16, 4 * 32) == 32
    assert not whole_strips(many, 16, 4 * 33)


def test_cinepak_chunks_that_do_not_fit() -> None:
    for size in (0, 3, 5000):
        broken = bytearray(packet(strip(INTRA, lower=8)))
        broken[24:26] = size.to_bytes(2, "big")  # of the first chunk
        assert not whole_strips(bytes(broken), *SIZE)


KEYS = (0, 25, 50)


@pytest.fixture
def tree(shared: Path) -> Path:
    return shared / "data" / "clips" / "tree.avi"


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places in the file of the packets that are decoded from now on."""
    given: list[int] = []
    decode_packet = VideoFile._decode

    def counted(self: VideoFile, packet: Any) -> list[Any]:
        if packet is not None:
            given.append(packet.pos)
        return decode_packet(self, packet)

    monkeypatch.setattr(VideoFile, "_decode", counted)
    return given


def in_order(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_cinepak_is_entered_at_its_keyframes(tree: Path, fed: list[int]) -> None:
    frames = in_order(tree)
    with VideoFile(tree) as video:
        for indices, packets in (([60], 11), ([30, 67], 24), ([49], 25), ([4, 12, 21, 29, 38, 46, 55, 63], 58)):
            fed.clear()
            np.testing.assert_array_equal(video.read(indices), frames[indices])
            assert len(fed) == packets


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (10, 0x11),  # the first strip: "inter-coded"
        (10 + 12, 0x21),  # its first chunk: some entries of a codebook
    ],
)
def test_cinepak_is_not_entered_where_a_keyframe_may_need_another(
    tree: Path, fed: list[int], tmp_path: Path, place: int, value: int
) -> None:
    with VideoFile(tree) as video:
        key = int(video.index.places[50])
    data = bytearray(tree.read_bytes())
    data[key + place] = value
    path = tmp_path / "changed.avi"
    path.write_bytes(data)
    frames = in_order(path)
    assert len(frames) == 68
    with VideoFile(path) as video:
        assert video.index.keys.tolist() == list(KEYS)
        np.testing.assert_array_equal(video.read([60, 40]), frames[[60, 40]])
    assert len(fed) > 61  # in the end all, in order


# Pictures that a decoder takes: 16 × 8, each strip of one row of blocks, all of one colour or as they were.


def colours(*, grey: int) -> bytes:
    return bytes([grey] * 4 + [0, 0]) * 256


def shown(grey: int, *, rows: int = 1) -> bytes:
    """A strip of so many rows of blocks that tells all: both codebooks of one grey, each block by the second."""
    books = b"".join(struct.pack(">2H", kind, 4 + FULL) + colours(grey=grey) for kind in (0x2000, 0x2200))
    body = books + struct.pack(">2H", 0x3200, 4 + 4 * rows) + bytes(4 * rows)
    return struct.pack(">6H", 0x1000, 12 + len(body), 0, 0, 4 * rows, 16) + body


def by_old_colours() -> bytes:
    """A strip whose blocks are told by the codebook that there is."""
    body = struct.pack(">2H", 0x3200, 4 + 4) + bytes(4)
    return struct.pack(">6H", 0x1100, 12 + len(body), 0, 0, 4, 16) + body


def with_flag(frame: bytes) -> bytes:
    """Whose strips do not take over the codebooks of the strip before."""
    return bytes([1]) + frame[1:]


def write(path: Path, frames: list[tuple[bytes, bool]]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("cinepak", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "rgb24"
        container.start_encoding()
        for number, (data, key) in enumerate(frames):
            given = av.Packet(data)
            given.pts = given.dts = number
            given.time_base, given.is_keyframe, given.stream = Fraction(1, 10), key, stream
            container.mux(given)
    return path


@pytest.mark.parametrize("later", [1, 2])
def test_cinepak_codebooks_of_strips_that_the_keyframe_has_not(tmp_path: Path, fed: list[int], later: int) -> None:
    """A picture of two strips after a keyframe of one: the second strip's colours are those of before the keyframe."""
    frames = [
        (packet(shown(40), shown(80)), True),
        (packet(shown(50), shown(90)), False),
        (packet(shown(200, rows=2)), True),
        *[(with_flag(packet(*[by_old_colours()] * later)), False)] * 2,
    ]
    path = write(tmp_path / "strips.avi", frames)
    true = in_order(path)
    assert true[:3, 0, 0, 0].tolist() == [40, 50, 200]
    assert true[4, 6, 0, 0] == (90 if later == 2 else 200)
    with VideoFile(path) as video:
        assert video.index.keys.tolist() == [0, 2]
        fed.clear()
        np.testing.assert_array_equal(video.read([4]), true[[4]])
    assert len(fed) == (3 if later == 1 else 1 + 5)  # begun at the keyframe; given up, and all in order
