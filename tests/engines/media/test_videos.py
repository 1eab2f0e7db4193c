import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from penstock.engines.media.videos import check_frames, clip_of
from penstock.errors import RequestError
from video_models import CODERS, shades, video_file
from vision_models import bomb, image_file

MANY = 1 << 40


def grays(clip):
    """The gray of the left half of each frame."""
    return clip.frames[:, 24, 8].mean(axis=1)


@pytest.mark.parametrize("form", CODERS)
def test_frames_are_spread_evenly(form):
    data = video_file(1, 24, form)
    assert check_frames([[data]], 8, MANY) == [(64, 48, 8)]
    clip = clip_of([data], 8, MANY)
    assert clip.frames.shape == (8, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames[:, 24, 56].max() < 32
    # A GIF has 256 colours in all.
    assert grays(clip) == pytest.approx(shades(1, 24)[::3], abs=20 if form == "gif" else 6)
    assert clip.rate == pytest.approx(10 / 3)


def test_a_short_video_is_shown_whole():
    clip = clip_of([video_file(2, 5)], 8, MANY)
    assert grays(clip) == pytest.approx(shades(2, 5), abs=6)
    assert clip.rate == 10


def test_frames_come_as_images_too():
    files = [image_file(number) for number in range(12)]
    assert check_frames([files], 4, MANY) == [(48, 40, 4)]
    clip = clip_of(files, 4, MANY)
    one = clip_of(files[3:4], 4, MANY)
    assert (clip.frames[1] == one.frames[0]).all()
    with pytest.raises(RequestError, match="its frames have different sizes"):
        clip_of([image_file(1), image_file(1, size=(8, 8))], 4, MANY)


def test_a_video_is_turned_as_its_camera_says():
    data = video_file(1, 2)
    upright = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # a quarter, clockwise
    at = data.rindex(struct.pack(">9i", *upright))  # of the track, behind that of the movie
    data = data[:at] + struct.pack(">9i", *turned) + data[at + 36 :]
    frames = clip_of([data], 2, MANY).frames
    assert frames.shape == (2, 64, 48, 3)
    assert frames[:, 8].min() > 40  # what was left is above
    assert frames[:, 56].max() < 32


def test_pixels_are_limited_before_anything_is_decoded(monkeypatch):
    data = video_file(1, 24)
    with pytest.raises(RequestError, match="are shown of it have 24,576 pixels, more than the 24,"):
        check_frames([[data]], 8, 24_575)
    monkeypatch.setattr(np, "rot90", None)
    with pytest.raises(RequestError, match=r"24 frames of 64 × 48 have 73,728 .* max_video_pixels"):
        clip_of([data], 8, 73_727)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no video", r"no known form \(MP4, MOV, WebM"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no known form"),
        (video_file(1)[:200], "damaged or cut off"),
        (video_file(1, form="avi").replace(b"FMP4", b"zzzz"), "a coding that is unknown"),
        (b"\x1aE\xdf\xa3" + bytes(100), "damaged or cut off"),
        (bomb(), "more than .* pixels|1,600,000,000 pixels"),
    ],
)
def test_what_is_no_video_is_refused(data, words):
    with pytest.raises(RequestError, match=words):
        check_frames([[data]], 8, 1 << 26)


def test_a_header_that_lies_about_the_size_allocates_nothing():
    data = video_file(1, 2, "avi", (640, 480))
    small = data.replace(struct.pack("<2i", 640, 480), struct.pack("<2i", 16, 16))
    assert small != data
    with pytest.raises(RequestError, match="not usable"):
        clip_of([small], 2, 16 * 16 * 2)


def test_a_frame_far_beyond_the_header_is_refused():
    sizes = ((48, 40), (2000, 1500), (48, 40))
    grows = of_images(*(image_file(1, "PNG", size) for size in sizes))
    assert clip_of([grows], 8, MANY).frames.shape == (3, 40, 48, 3)
    with pytest.raises(RequestError, match="more than the 3,000,000 pixels of max_video_pixels"):
        clip_of([grows], 8, 3_000_000)
    plain = BytesIO()
    Image.new("RGB", (4000, 3000)).save(plain, "PNG")
    bursts = of_images(image_file(1), plain.getvalue())
    assert check_frames([[bursts]], 8, 1 << 26) == [(48, 40, 2)]
    with pytest.raises(RequestError, match="cannot be decoded"):
        clip_of([bursts], 8, MANY)


def of_images(*files):
    """An AVI whose header states the size 48 × 40."""
    file = BytesIO()
    with av.open(file, "w", format="avi") as out:
        stream = out.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "rgb24"
        for number, data in enumerate(files):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.time_base = stream, number, Fraction(1, 10)
            packet.dts, packet.is_keyframe = number, True
            out.mux(packet)
    return file.getvalue()
