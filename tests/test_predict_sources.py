"""Where images come from: folders, the web, videos, cameras, memory; everything bad is one line."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from folders import make_image, one_line, write_image
from opendetr.data import listing
from opendetr.data.images import ImageError, read_image
from opendetr.data.listing import images_in
from opendetr.data.records import DataError
from opendetr.files import IMAGE_SUFFIXES
from opendetr.inference.sources import url
from opendetr.inference.sources.prefetch import in_order, read_ahead
from opendetr.inference.sources.reading import (
    count_images,
    each_image,
    folders_of,
    from_bgr,
    is_endless,
    is_one_image,
    plain_source,
    read_source,
)
from opendetr.inference.sources.source_image import SourceImage
from opendetr.inference.sources.url import read_url
from opendetr.inference.sources.video import VideoError, camera_frames, video_frames, without_password
from web import redirects, sends, sends_raw, serving

# -------------------------------------------------------------------------------------------------------------- folders


def empty_files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_images_of_a_tree_come_in_the_order_of_their_paths(tmp_path):
    empty_files(tmp_path, "b.jpg", "b/x.PNG", "a/2.jpg", "a/10.jpg", "a/z/1.gif", "a.jpeg", "c/notes.txt", "ä.webp")
    empty_files(tmp_path, *(f"d/{number}{suffix}" for number, suffix in enumerate(IMAGE_SUFFIXES)))
    found = list(images_in(tmp_path))
    assert found == sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".txt")
    assert len(found) == 7 + len(IMAGE_SUFFIXES)


def test_images_are_recognised_by_their_content_where_the_name_says_nothing(tmp_path):
    """Files without a suffix or with an unknown one; formats that are never read are named, unless there is a copy."""
    write_image(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for name in ("plain", "b.dat", "c.txt", ".hidden", "._a.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(content)
    empty_files(tmp_path, "IMG_1.HEIC", "d.CR2", "a.CR2", "readme", "clip.mp4")
    assert [path.name for path in images_in(tmp_path)] == ["IMG_1.HEIC", "a.png", "b.dat", "d.CR2", "plain"]


def test_folders_are_listed_only_when_they_are_reached(tmp_path):
    empty_files(tmp_path, "a/1.jpg", "b/1.jpg")
    found = images_in(tmp_path)
    next(found)
    empty_files(tmp_path, "b/2.jpg")
    assert [path.name for path in found] == ["1.jpg", "2.jpg"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    inside, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    empty_files(tmp_path, "photos/a/1.jpg", "elsewhere/2.jpg")
    (inside / "a" / "loop").symlink_to(inside)
    (inside / "self").symlink_to("self")
    (inside / "z.jpg").symlink_to("z.jpg")
    (inside / "first").symlink_to(elsewhere)
    (inside / "second").symlink_to(elsewhere)
    assert [path.relative_to(inside).as_posix() for path in images_in(inside)] == ["a/1.jpg", "first/2.jpg", "z.jpg"]


def test_a_link_to_nowhere_is_named_and_a_pipe_is_not_touched(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [path.name for path in images_in(tmp_path)] == ["gone.jpg"]
    with pytest.raises(ImageError, match=r"gone.jpg: no such file"):
        read_source(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="neither an image nor a folder"):
        read_source(tmp_path / "pipe.jpg")


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    empty_files(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def refusing(folder):
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(listing.os, "scandir", refusing)
    lines: list[str] = []
    assert [path.parent.name for path in images_in(tmp_path, on_unreadable=lines.append)] == ["b"]
    assert lines == [f"{tmp_path / 'a'}: the folder cannot be read (Permission denied)"]
    with pytest.raises(DataError, match="cannot be read"):
        list(images_in(tmp_path))


def test_the_skipped_folder_is_left_out_even_when_it_is_made_later(tmp_path):
    empty_files(tmp_path, "a/1.jpg", "b/2.jpg")
    found = images_in(tmp_path, skip=tmp_path / "b" / "out")
    next(found)
    empty_files(tmp_path, "b/out/1.jpg", "b/out/b/1.jpg")
    assert [path.name for path in found] == ["2.jpg"]


def test_nothing_there_is_said_at_once(tmp_path):
    for source in (tmp_path, str(tmp_path / "*.jpg")):
        with pytest.raises(DataError) as caught:
            each_image(source)
        assert str(tmp_path) in one_line(caught.value)
    lines: list[str] = []
    good = tmp_path / "good.jpg"
    write_image(good)
    assert list(each_image([str(tmp_path / "*.png"), good], lines.append)) == [good]
    assert "no file matches" in lines[0]


def test_what_stands_for_one_image(tmp_path):
    write_image(tmp_path / "photo[1].jpg")
    one = [tmp_path / "photo[1].jpg", tmp_path / "gone.jpg", "https://host/*.jpg", "x" * 5000, make_image(),
           torch.zeros(3, 2, 2), Image.new("RGB", (2, 2))]  # fmt: skip
    assert all(is_one_image(source) for source in one)
    several = [tmp_path, str(tmp_path / "*.jpg"), "clip.mp4", 0, [], ["a.jpg"], iter(())]
    assert not any(is_one_image(source) for source in several)
    assert count_images([tmp_path, *one[:2]]) == 3
    assert count_images([tmp_path, "clip.mp4"]) is None
    assert folders_of(tmp_path) == folders_of(tmp_path / "x.jpg") == folders_of(str(tmp_path / "*.jpg")) == {tmp_path}
    assert folders_of("https://host/a.jpg") == set()


# ------------------------------------------------------------------------------------------------------------ in memory


def test_images_in_memory_are_the_same_in_every_form():
    pixels = make_image()
    forms = [pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1),
             torch.from_numpy(pixels).permute(2, 0, 1) / 255]  # fmt: skip
    for form in forms:
        np.testing.assert_array_equal(read_source(form).pixels, pixels)
    grey = np.repeat(pixels[..., :1], 3, 2)
    for form in (pixels[..., 0], pixels[..., :1], torch.from_numpy(pixels[None, ..., 0])):
        np.testing.assert_array_equal(read_source(form).pixels, grey)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_float_tensor_of_any_precision_is_an_image(dtype):
    every = torch.arange(256, dtype=torch.float64).div(255).to(dtype).expand(3, 1, 256)
    pixels = read_source(every).pixels
    np.testing.assert_array_equal(pixels[0, :, 1], (every[1, 0].double() * 255).round().numpy())
    if dtype != torch.bfloat16:  # which cannot tell all of them apart
        np.testing.assert_array_equal(pixels[0, :, 1], np.arange(256))


BAD_IMAGES = {
    "floats": (np.zeros((4, 4, 3)), "float64"),
    "floats in 0..255": (np.full((4, 4, 3), 200.0), "(array * 255)"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), "array.transpose(1, 2, 0)"),
    "16 bits": (np.zeros((4, 4, 3), np.uint16), "array >> 8"),
    "a batch of arrays": (np.zeros((2, 4, 4, 3), np.uint8), "list(array)"),
    "a batch of tensors": (torch.zeros(2, 3, 4, 4), "list(tensor)"),
    "a tensor with an alpha channel": (torch.zeros(4, 5, 5), "tensor[:3]"),
    "normalised": (torch.full((3, 2, 2), -1.5), "without normalisation"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
    "channels last": (torch.zeros(4, 5, 3), "tensor.permute(2, 0, 1)"),
    "255": (torch.full((3, 2, 2), 255.0), "0..1 (divided by 255)"),
    "not a number": (torch.full((3, 2, 2), torch.nan), "values that are not finite"),
    "infinite": (torch.full((3, 2, 2), torch.inf, dtype=torch.bfloat16), "values that are not finite"),
    "255 in half precision": (torch.full((3, 2, 2), 255, dtype=torch.bfloat16), "0..1"),
    "whole numbers": (
        torch.zeros(3, 2, 2, dtype=torch.int64),
        "a tensor of int64 is not an image; give uint8",
    ),
    "signed bytes": (torch.zeros(3, 2, 2, dtype=torch.int8), "a tensor of int8"),
    "truth values": (torch.zeros(3, 2, 2, dtype=torch.bool), "a tensor of bool"),
    "complex numbers": (torch.zeros(3, 2, 2, dtype=torch.complex64), "a tensor of complex64"),
    "eight bits of float": (torch.zeros(3, 2, 2, dtype=torch.float8_e5m2), "a tensor of float8_e5m2"),
    "sparse": (torch.zeros(3, 2, 2).to_sparse(), "holds no pixels"),
    "without content": (torch.zeros(3, 2, 2, device="meta"), "holds no pixels"),
    "an array of whole numbers": (np.zeros((4, 4, 3), np.int64), "int64"),
    "an array of truth values": (np.zeros((4, 4), bool), "bool"),
    "an array of objects": (np.full((4, 4, 3), None), "object"),
    "an array of no dimension": (np.array(3, np.uint8), "()"),
    "32 bits": (Image.fromarray(np.zeros((2, 2), np.float32)), "32-bit"),
    "no image": (object(), "object is not an image"),
    "a name too long": ("x" * 5000 + ".jpg", "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_what_is_no_image_is_one_line(kind):
    source, words = BAD_IMAGES[kind]
    with pytest.raises(ImageError) as caught:
        read_source(source)
    assert words in one_line(caught.value)


NOT_SOURCES = {
    "nothing": (None, "None is not an image; cv2.imread returns it"),
    "a truth value": (True, "bool is not an image"),
    "a number": (0.0, "float is not an image"),
    "bytes": (b"content", "bytes, 7 bytes: not an image in a supported format"),
    "a text file": (io.StringIO("content"), "open it in binary mode"),
    "a stream in a list": (["rtsp://camera/stream"], "give it alone"),
    "a file": (io.BytesIO(b"content"), "an open file (BytesIO)"),
    "a dict": ({"a.jpg": 1}, "dict is not an image"),
    "a set": ({"a.jpg"}, "set is not an image"),
    "cameras": ([0, 1], "camera 0 in a list"),
    "NumPy cameras": ([np.int64(3)], "camera 3 in a list"),
    "a list of lists": ([["a.jpg"]], "list in a list"),
    "truth values": ([True], "bool is not an image"),
    "a list of bytes": ([b"a.jpg"], "bytes, 5 bytes: not an image"),
}


@pytest.mark.parametrize("kind", NOT_SOURCES)
def test_what_could_be_misread_is_one_line(kind):
    source, words = NOT_SOURCES[kind]
    with pytest.raises(ImageError) as caught:
        list(each_image(plain_source(source)))
    assert words in one_line(caught.value)


def test_contents_and_batches_are_images(tmp_path):
    write_image(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for source in (content, bytearray(content), io.BytesIO(content), (tmp_path / "a.png").open("rb")):
        np.testing.assert_array_equal(read_source(plain_source(source)).pixels, pixels)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    for array in (opaque, from_bgr(pixels[..., ::-1]), from_bgr(opaque[..., [2, 1, 0, 3]])):
        np.testing.assert_array_equal(read_source(array).pixels, pixels)
    batch = plain_source(np.stack([pixels, pixels]))
    assert [read_source(image).pixels.shape for image in batch] == [pixels.shape] * 2


def test_a_stream_is_no_file_and_its_password_is_not_told():
    assert is_endless("rtsp://camera/stream") and not is_one_image("RTSP://camera/stream")
    assert count_images(["rtsp://camera/stream"]) is None and folders_of("rtsp://camera/stream") == set()
    assert without_password("rtsp://me:secret@camera:554/a@b") == "rtsp://camera:554/a@b"


def test_forms_of_one_source(tmp_path):
    write_image(tmp_path / "a.png")
    (entry,) = os.scandir(tmp_path)
    assert plain_source(entry) == tmp_path / "a.png"
    assert list(each_image([entry, np.str_(tmp_path / "a.png")])) == [tmp_path / "a.png", str(tmp_path / "a.png")]
    assert type(plain_source(np.int32(2))) is int


ORIENTATIONS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: np.rot90(a, 2), 4: lambda a: a[::-1],
                5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
                7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_every_source_turns_an_image_as_its_exif_says(tmp_path, server, orientation, suffix):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8], pixels[:, 16:, 1] = (200, 0, 0), 250  # each quarter differs
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "in" / f"a{suffix}"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, exif=exif)
    server.answers["/a"] = sends(path.read_bytes())
    with Image.open(path) as in_memory:
        in_memory.load()
    sources = [path, str(path), path.parent, str(path.parent / "*"), [path], f"{server.url}/a", Image.open(path),
               in_memory, [Image.open(path)], io_image(path.read_bytes())]  # fmt: skip
    expected = ORIENTATIONS[orientation](pixels)
    for source in sources:
        (found,) = map(read_source, each_image(source))
        assert found.pixels.shape == expected.shape, source
        assert np.abs(found.pixels.astype(int) - expected).mean() < 30, source


def io_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_a_cut_off_pil_image_is_one_line(tmp_path):
    write_image(tmp_path / "whole.png", 200, 200)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError) as caught:
        read_source(image)
    assert "cut.png" in one_line(caught.value)


# ------------------------------------------------------------------------------------------------------------------ web


def encoded(form: str = "png") -> bytes:
    content = io.BytesIO()
    Image.fromarray(make_image()).save(content, form)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENDETR_OFFLINE", raising=False)
    with serving() as running:
        yield running


def refusal(server, path: str = "/image") -> str:
    began = time.monotonic()
    with pytest.raises(ImageError) as caught:
        read_url(server.url + path)
    assert time.monotonic() - began < 5
    line = one_line(caught.value)
    assert line.startswith(server.url + path)
    return line


def test_an_image_comes_whatever_the_server_calls_it(server):
    for number, kind in enumerate(("image/png", "text/html", "nonsense", None)):
        server.answers[f"/{number}"] = sends(encoded(), kind=kind)
        np.testing.assert_array_equal(read_url(f"{server.url}/{number}"), make_image())
    server.answers["/unsized"] = sends(encoded(), length=-1)
    server.answers["/moved"] = redirects("/unsized")
    found = read_source(f"{server.url}/moved")
    assert found.source == f"{server.url}/moved"
    np.testing.assert_array_equal(found.pixels, make_image())


def test_addresses_may_hold_any_letters(server):
    server.answers["/f%C3%BC%20nf?q=%E2%82%AC"] = sends(encoded())
    assert read_url(f"{server.url}/fü nf?q=€#part").shape == (48, 64, 3)


def test_what_is_no_image_says_what_came(server):
    server.answers["/image"] = sends(b"<html>log in first</html>", kind="text/html")
    assert "25 bytes, content type text/html" in refusal(server)
    server.answers["/image"] = sends(b"", kind="image/png")
    assert "0 bytes" in refusal(server)
    server.answers["/image"] = sends(encoded()[:900])
    assert "not an image that can be read" in refusal(server)


def test_error_answers_and_redirections_that_lead_nowhere(server, tmp_path):
    write_image(tmp_path / "secret.png")
    for code in (404, 403, 500):
        server.answers["/image"] = sends(encoded(), code=code)
        assert f"the server answers {code}" in refusal(server)
    server.answers["/image"] = redirects("/image")
    assert "302" in refusal(server)
    assert len(server.asked) < 30
    for where in (f"file://{tmp_path}/secret.png", "ftp://127.0.0.1:1/x.png", "gopher://x"):
        server.answers["/image"] = redirects(where)
        refusal(server)


def test_transfers_that_break_off(server):
    server.answers["/image"] = sends(encoded(), length=10**6)
    assert "of 1000000 bytes" in refusal(server)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nshort"
    server.answers["/image"] = sends_raw(chunked)
    assert "cannot be downloaded" in refusal(server)
    for nonsense in (b"", b"\0\xff" * 50, b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\nabc"):
        server.answers["/image"] = sends_raw(nonsense)
        refusal(server)


def test_slow_servers_are_given_up(server, monkeypatch):
    monkeypatch.setattr(url, "MAX_SECONDS", 0.4)
    head = b"HTTP/1.1 200 OK\r\n"
    for pieces in ([head + b"\r\n", *([b"."] * 40)], [head, *([b"A: b\r\n"] * 40)]):
        server.answers["/image"] = sends_raw(*pieces, pause=lambda: time.sleep(0.05))
        assert "the download takes more than 0.4 seconds" in refusal(server)
    monkeypatch.setattr(url, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(url, "_SILENCE_SECONDS", 0.2)
    server.answers["/image"] = sends_raw(head, pause=lambda: time.sleep(1))
    assert "timed out" in refusal(server)


def test_what_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(url, "MAX_BYTES", 2**20)
    server.answers["/image"] = sends_raw(b"HTTP/1.1 200 OK\r\n\r\n", *([b"x" * 2**16] * 10**4))
    assert "more than 1 MiB" in refusal(server)


@pytest.mark.parametrize("address", ["http://", "http://127.0.0.1:1/a.png", "http://[::bad/a.png", "http://a b/c",
                                     "http://127.0.0.1:99999/a", "http://\n/x"])  # fmt: skip
def test_bad_addresses_are_one_line(address, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ImageError) as caught:
        read_url(address)
    assert "cannot be downloaded" in one_line(caught.value) or "\n" in address


# --------------------------------------------------------------------------------------------------------------- videos


def write_video(path: Path, **options) -> Path:
    pytest.importorskip("av")
    from clips import write_video as write

    return write(path, **options)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.AVI", "clip.webm.mov"])
def test_frames_are_numbered_and_timed(tmp_path, name):
    frames = list(video_frames(write_video(tmp_path / name.replace("AVI", "avi"))))
    assert [frame.frame for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(10) / 10, atol=0.02)
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    np.testing.assert_allclose([frame.pixels.mean() for frame in frames], 20 * np.arange(10), atol=4)
    assert frames[0].source == str(tmp_path / name.replace("AVI", "avi"))


def test_frames_are_upright(tmp_path):
    """Phones store portraits lying, with a matrix that turns them a quarter clockwise: top left is then top right."""
    av = pytest.importorskip("av")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "a.mp4").read_bytes()
    start = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: where the matrix lies
    turned = struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 48 * 2**16, 0, 2**30)
    (tmp_path / "a.mp4").write_bytes(content[:start] + turned + content[start + 36 :])
    (frame,) = video_frames(tmp_path / "a.mp4")
    assert frame.pixels.shape == (64, 48, 3)
    np.testing.assert_array_equal(frame.pixels.mean(2) > 128, np.rot90(pixels, -1).mean(2) > 128)


def test_what_is_no_video_is_one_line(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", num_frames=50).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("cut.mp4", "text.mp4", "empty.avi", "gone.mkv", "folder.mp4"):
        with pytest.raises(VideoError) as caught:
            list(video_frames(tmp_path / name))
        assert name in one_line(caught.value)


def test_a_video_that_breaks_off_gives_the_frames_before(tmp_path):
    whole = write_video(tmp_path / "a.avi", num_frames=60).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "a.avi").write_bytes(whole[:middle] + b"\0" * 3000 + whole[middle + 3000 :])
    lines: list[str] = []
    frames = list(each_image([tmp_path / "a.avi", tmp_path / "gone.avi"], lines.append))
    assert len(frames) > 20
    assert lines[-1].endswith("gone.avi: no such file")


@pytest.mark.parametrize("head", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n", "ffconcat version 1.0\nfile "])
def test_a_playlist_that_calls_itself_a_video_reaches_no_server(tmp_path, server, head):
    pytest.importorskip("av")
    for name in ("evil.mp4", "evil.mkv"):
        (tmp_path / name).write_text(f"{head}{server.url}/a.ts\n")
        with pytest.raises(VideoError):
            list(video_frames(tmp_path / name))
    assert server.asked == []


def test_without_pyav_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(
        VideoError, match=r"a.mp4: needs av; install it with `python -m pip install 'opendetr\[video\]'`"
    ):
        next(video_frames(tmp_path / "a.mp4"))


class Camera:
    """What OpenCV gives for a camera with three images, each of another red."""

    def __init__(self, index: int) -> None:
        self.index, self.left, self.released = index, 3, False
        CAMERAS.append(self)

    def isOpened(self) -> bool:  # noqa: N802  OpenCV's name
        return self.index == 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, np.full((4, 6, 3), (0, 0, self.left), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


CAMERAS: list[Camera] = []


def test_cameras(monkeypatch):
    """OpenCV itself is not needed: a stand-in has its four names."""
    reversed_colours = SimpleNamespace(VideoCapture=Camera, COLOR_BGR2RGB=4, cvtColor=lambda image, _: image[..., ::-1])
    monkeypatch.setitem(sys.modules, "cv2", reversed_colours)
    taken = camera_frames(0)
    frames = [next(taken) for _ in range(3)]
    assert [(frame.frame, frame.source) for frame in frames] == [(n, "camera 0") for n in range(3)]
    assert [frame.pixels[0, 0].tolist() for frame in frames] == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(VideoError, match="no more images after 3"):
        next(taken)
    with pytest.raises(VideoError, match="camera 7: not found"):
        next(camera_frames(7))
    assert all(camera.released for camera in CAMERAS)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(VideoError, match="opencv-python-headless"):
        next(camera_frames(0))


# -------------------------------------------------------------------------------------------------------------- threads


def test_work_ahead_keeps_the_order_and_its_bound():
    taken = count()
    started: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.01 if item % 3 else 0.03)
        return item * item

    def items():
        for item in range(40):
            started.append(next(taken))
            yield item

    with ThreadPoolExecutor(4) as pool:
        for number, future in enumerate(in_order(pool, work, items(), ahead=5)):
            assert future.result() == number * number
            assert len(started) <= number + 6
    assert number == 39


def test_reading_ahead_stops_with_its_reader():
    read: list[int] = []

    def endless():
        for item in count():
            read.append(item)
            yield item

    items = read_ahead(endless(), 3)
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    items.close()
    assert len(read) <= 9
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_reading_ahead_passes_errors_on_after_what_was_before():
    def failing():
        yield 1
        raise VideoError("breaks off")

    items = read_ahead(failing(), 3)
    assert next(items) == 1
    with pytest.raises(VideoError):
        next(items)


def test_images_pass_through_unchanged():
    known = SourceImage(make_image(), "clip.mp4", 3, 0.5)
    assert read_source(known) is known
    assert list(each_image([known])) == [known]
