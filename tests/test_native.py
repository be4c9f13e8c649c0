"""The compiled sampling: how it is built, and what happens where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from opendetr.nn import native
from opendetr.nn.deformable_attention import sample_and_sum

PROGRAM = "from opendetr.nn.native import library; print(library() is not None)"
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As in a process that has not asked for the library yet, with an empty cache."""
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "library", native.cache(native.library.__wrapped__))
    return tmp_path


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def compiler(folder: Path, script: str) -> str:
    """A PATH whose cc is a script."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (bin_folder / "cc").chmod(0o755)
    return f"{bin_folder}:{os.environ['PATH']}"


@needs_compiler
def test_it_is_built_once_for_all_processes(tmp_path):
    environment = {**os.environ, "OPENDETR_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    (built,) = (path for path in tmp_path.rglob("*") if path.is_file())
    made = built.stat().st_mtime_ns
    subprocess.run(command, env=environment, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [built]
    assert built.stat().st_mtime_ns == made


@needs_compiler
def test_it_can_be_switched_off(unbuilt, monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library() is None


def test_without_a_compiler_nothing_is_said(unbuilt, monkeypatch):
    monkeypatch.setenv("PATH", str(unbuilt))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library() is None


def test_a_compiler_that_fails_is_named_and_sampling_goes_on(unbuilt, monkeypatch):
    monkeypatch.setenv("PATH", compiler(unbuilt, "printf 'no such header \\377' >&2; exit 1"))
    with pytest.warns(UserWarning, match=r"bin/cc: cannot build the sampling .* no such header"):
        assert native.library() is None
    monkeypatch.setattr("opendetr.nn.deformable_attention.library", native.library)
    sums = sample_and_sum(
        torch.ones(1, 4, 1, 2), [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
    )
    torch.testing.assert_close(sums, torch.ones(1, 1, 2))
    assert not [path for path in (unbuilt / "cache").rglob("*") if path.is_file()]


@needs_compiler
def test_a_compiler_that_does_not_know_this_processor_builds_for_any(unbuilt, monkeypatch):
    real = shutil.which("cc")
    script = f'for flag in "$@"; do [ "$flag" = -march=native ] && exit 1; done; exec {real} "$@"'
    monkeypatch.setenv("PATH", compiler(unbuilt, script))
    assert native.library() is not None


@needs_compiler
def test_a_folder_that_cannot_be_written_is_named(unbuilt, monkeypatch):
    (unbuilt / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="cannot build the sampling"):
        assert native.library() is None


@needs_compiler
def test_without_a_home_sampling_goes_on(unbuilt, monkeypatch):
    monkeypatch.delenv("OPENDETR_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning, match="cannot build the sampling.* home"):
        assert native.library() is None


@needs_compiler
@pytest.mark.slow
def test_a_library_that_was_cut_off_is_built_again(tmp_path):
    environment = {**os.environ, "OPENDETR_CACHE": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True, text=True
        )
        assert (done.stdout.strip(), done.stderr) == ("True", "")
        (built,) = (tmp_path / "native").iterdir()
        assert built.stat().st_size > 0
        built.write_bytes(b"")
