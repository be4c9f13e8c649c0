"""Atomic writes: the old file or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from PIL import Image

from opendetr.files import IMAGE_SUFFIXES, atomic_path, cache_folder, flush, write_atomically
from opendetr.visualize import save_image


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("content", [b"\0\r\n", "ä\n"])
def test_content_arrives_as_it_is(tmp_path, content, sync):
    for _ in range(2):
        write_atomically(tmp_path / "a", content, sync=sync)
        assert (tmp_path / "a").read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_the_file_that_was_there(tmp_path, error):
    write_atomically(tmp_path / "a", b"before")
    with pytest.raises(error), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        assert (tmp_path / "a").read_bytes() == b"before"
        raise error
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_before_anything_is_written_stays_the_error(tmp_path, error):
    with pytest.raises(error), atomic_path(tmp_path / "a"):
        raise error
    assert names(tmp_path) == set()


def test_a_file_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == set()


def test_of_two_writers_the_last_one_wins_whole(tmp_path):
    with atomic_path(tmp_path / "a.png") as ours:
        ours.write_bytes(b"ours")
        with atomic_path(tmp_path / "a.png") as theirs:
            theirs.write_bytes(b"theirs")
        assert ours != theirs and (tmp_path / "a.png").read_bytes() == b"theirs"
        assert ours.parent == tmp_path and not ours.name.lower().endswith(IMAGE_SUFFIXES)
    assert (tmp_path / "a.png").read_bytes() == b"ours"
    assert names(tmp_path) == {"a.png"}


def test_the_longest_name_can_be_written(tmp_path):
    write_atomically(tmp_path / ("x" * 255), b"content")
    assert names(tmp_path) == {"x" * 255}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path):
    import resource

    write_atomically(tmp_path / "a", b"before")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomically(tmp_path / "a", bytes(2000))
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (tmp_path / "a").read_bytes() == b"before"
    assert names(tmp_path) == {"a"}


def test_sync_waits_for_the_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    seen, open_before = [], psutil.Process().num_fds() if os.name == "posix" else 0
    monkeypatch.setattr("opendetr.files.os.fsync", lambda _handle: seen.append((tmp_path / "a").exists()))
    write_atomically(tmp_path / "a", b"content", sync=True)
    assert seen == [False]
    write_atomically(tmp_path / "a", b"content")  # does not wait
    assert seen == [False]
    flush(tmp_path)
    assert seen == [False, True] or os.name != "posix"
    assert os.name != "posix" or psutil.Process().num_fds() == open_before


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("OPENDETR_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "opendetr"
    monkeypatch.delenv("OPENDETR_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "opendetr"


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")])
def test_an_image_is_saved_in_the_format_of_its_suffix(tmp_path, suffix, form):
    save_image(Image.new("RGB", (8, 6)), tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert (image.format, image.size) == (form, (8, 6))
    assert names(tmp_path) == {f"a{suffix}"}
