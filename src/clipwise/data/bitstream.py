"""What a packet's own bytes tell of its frames, where neither container nor decoder says it: MPEG-4 Part 2, Cinepak."""

from __future__ import annotations

import re
import struct
from typing import Any

__all__ = ["VopReader", "strips", "vol_header", "whole_strips"]

# Cinepak, as FFmpeg's decoder reads it: a picture is made of strips, a strip of chunks.
_CINEPAK_HEADER = 10  # bytes: flags, size, width, height, number of strips
_MOST_STRIPS = 32
_STRIP = struct.Struct(">6H")  # kind, size in bytes; top, left, bottom or height, right
_CHUNK = struct.Struct(">2H")  # kind, size in bytes
_INTRA_STRIP = 0x1000
_CODEBOOKS = (0x2000, 0x2200)  # for blocks in four parts and in one, from their first entry on, in encoders' order
_WHOLE_CODEBOOK = 256 * 6  # bytes
_BY_BOTH, _BY_ONE_CODEBOOK = 0x3000, 0x3200  # pictures in which each block is told
_BLOCK = 4  # pixels


class VopReader:
    """Tells which MPEG-4 Part 2 packets give a frame, and in which order; to be shown all packets.

    Old encoders write two pictures (VOPs) into one packet and, in the next, a placeholder (a picture "not
    coded") that lets the decoder hand out the second; elsewhere "not coded" means "show the last one
    again", which FFmpeg does not. One-byte packets stand for nothing.
    """

    LONGEST_EMPTY = 19  # bytes, as in FFmpeg's own test
    _VOP = b"\x00\x00\x01\xb6"

    def __init__(self, extradata: bytes | None) -> None:
        self._header = vol_header(extradata or b"")
        self._count = 0
        self._before = b""  # the packet before, if it may hold a second picture
        self._regular = True
        self.order: list[int] = []  # numbers of the packets that give a frame, as shown, if `order_known`
        self.after_empty = False  # the last packet was a picture "not coded" that gave no frame

    @property
    def order_known(self) -> bool:
        """Does the header say that B-pictures may come, so that others are shown one later, and all else fits?"""
        return self._header is not None and self._header[1] is True and self._regular

    def gives_frame(self, packet: Any) -> bool:
        number, before = self._count, self._before
        self._count, self._before = number + 1, b""
        if self._header is None and not number:  # where the container does not hold the header, the first packet does
            self._header = vol_header(bytes(packet))
        self.after_empty = False
        data = bytes(packet)
        first = data.find(self._VOP)
        short = packet.size <= self.LONGEST_EMPTY
        if short and first < 0:
            return False
        if not short or self._is_coded(data[first + 4 :]):
            self._regular = self._regular and first >= 0 and not before
            picture = first
            if data.rfind(self._VOP) > first:
                self._before = data
        elif before:
            data, picture = before, before.rfind(self._VOP)
        else:
            self.after_empty, self._regular = True, False
            return False
        is_b = b"\x80" <= data[picture + 4 : picture + 5] < b"\xc0"  # the first two bits tell a picture's type
        self.order.insert(len(self.order) - is_b, number)  # before the last other one, which is shown after it
        return True

    def _is_coded(self, vop: bytes) -> bool:
        if self._header is None:
            return True
        bits = _bits(vop)
        seconds_end = bits.find("0", 2)  # two bits of picture type, then one "1" for each full second
        position = seconds_end + 1 + 1 + self._header[0] + 1
        return seconds_end < 0 or position >= len(bits) or bits[position] == "1"


def _bits(data: bytes) -> str:
    return f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""


def vol_header(data: bytes) -> tuple[int, bool | None] | None:
    """Of the video-object-layer header (ISO/IEC 14496-2, 6.2.3): the width of a picture's time field, and whether
    pictures are reordered, None where it does not say; None if there is no such header."""
    match = re.search(rb"\x00\x00\x01[\x20-\x2f]", data)
    if match is None:
        return None
    bits = _bits(data[match.end() : match.end() + 40])
    position = 0

    def take(count: int) -> int:
        nonlocal position
        value = int(bits[position : position + count] or "0", 2)
        position += count
        return value

    take(1 + 8)  # random accessible, type
    version = 1
    if take(1):
        version = take(4)
        take(3)
    if take(4) == 15:  # aspect ratio, written out
        take(16)
    reorders: bool | None = None
    if take(1):  # control parameters
        take(2)
        reorders = not take(1)  # "low delay"
        if take(1):
            take(79)
    if take(2) == 3 and version != 1:
        take(4)
    take(1)
    return max(1, (take(16) - 1).bit_length()), reorders


def strips(packet: bytes | memoryview) -> int:
    """Of a Cinepak packet."""
    return min(_MOST_STRIPS, int.from_bytes(packet[8:10], "big"))


def whole_strips(packet: bytes | memoryview, width: int, height: int) -> int:
    """The strips of a Cinepak packet whose picture takes nothing from those before it, neither pixels nor entries of
    codebooks; 0 of one that may.

    It takes nothing where the strips fill the picture, and each says that it is intra-coded, sets all 256 entries of
    both codebooks and leaves no block out. Each strip keeps its codebooks for the same strip of later pictures: one
    with more strips may use codebooks that were set before.
    """
    if len(packet) < _CINEPAK_HEADER or int.from_bytes(packet[1:4], "big") != len(packet):
        return 0
    most_right, most_down = (-(-side // _BLOCK) * _BLOCK for side in (width, height))
    position, bottom = _CINEPAK_HEADER, 0
    for _ in range(strips(packet)):
        if position + _STRIP.size > len(packet):
            return 0
        kind, size, top, left, lower, right = _STRIP.unpack_from(packet, position)
        if kind != _INTRA_STRIP or top not in (0, bottom) or left or not width <= right <= most_right:
            return 0
        above, bottom = bottom, lower if top else bottom + lower  # 0 stands for "where the one before ends"
        end = position + size
        if not above < bottom <= most_down or end > len(packet):
            return 0
        blocks = -(-right // _BLOCK) * -(-(bottom - above) // _BLOCK)
        if not _tells_all(packet, position + _STRIP.size, end, blocks):
            return 0
        position = end
    return strips(packet) if bottom >= height else 0


def _tells_all(packet: bytes | memoryview, position: int, end: int, blocks: int) -> bool:
    """Whether a strip's chunks are both codebooks, whole, and then something for each block."""
    for expected in _CODEBOOKS:
        if position + _CHUNK.size > end:
            return False
        kind, size = _CHUNK.unpack_from(packet, position)
        if kind != expected or size != _CHUNK.size + _WHOLE_CODEBOOK:
            return False
        position += size
    if position + _CHUNK.size > end:
        return False
    kind, size = _CHUNK.unpack_from(packet, position)
    if kind not in (_BY_BOTH, _BY_ONE_CODEBOOK) or position + size != end:
        return False
    # A byte a block at least; before each 32 blocks that are told in one of two ways, four bytes that say in which.
    return bool(size >= _CHUNK.size + blocks + (4 * -(-blocks // 32) if kind == _BY_BOTH else 0))
