"""The progress bar: on terminals alone, and gone at the end."""

from __future__ import annotations

import pytest

from opendetr.visualize import progress_bar


@pytest.mark.parametrize(("in_bytes", "shown"), [(False, "2048/4096"), (True, "2.0/4.0 KiB")])
def test_a_terminal_shows_what_is_done(monkeypatch, capsys, in_bytes, shown):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("reading", in_bytes=in_bytes) as progress:
        progress(0, None)
        progress(2048, 4096)
    said = capsys.readouterr()
    assert "reading" in said.err and shown in said.err
    assert said.err.endswith("\x1b[2K")  # the line is cleared
    assert said.out == ""


def test_a_file_shows_nothing(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    with progress_bar("reading") as progress:
        progress(1, 2)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
