"""Random faults for files: how many are tried, and what they are made of.

`OPENDETR_FUZZ_CASES=5000 python -m pytest tests/test_fuzz_data.py tests/test_fuzz_images.py` is the longer run.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("OPENDETR_FUZZ_CASES", "500"))
_LONGEST_CASE = 60  # seconds; a case takes milliseconds, and a loaded machine is slow

# The same cases in every run.
fuzzed = settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# What readers stumble over.
TOKENS = (
    *("", " ", "\n", "\t", ",", ";", '"', "'", "{", "}", "[", "]", ":", "<", ">", "&lol;", "]]>", "#", "%", "\\"),
    *("0", "-1", "1", "0.5", "1e-320", "1e308", "-1e308", "1e999", "nan", "inf", "9" * 400, "0x10", "1_000", "٣", "½"),
    *("null", "true", "None", "cat", "é", "猫", "\u202e", "\ufeff", "\x00", "\x1b[31m", "a" * 5000),
    *("..", "../..", ".", "/", "/etc/passwd", "C:\\x", "\\\\host\\x", "0.png", "images", "../set/images/0.png"),
)


def edits() -> st.SearchStrategy[list[tuple[float, int, bytes]]]:
    """Up to six edits of a file: where (as a part of its length), how many bytes go, and what takes their place."""
    new = st.sampled_from(TOKENS).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=8)
    return st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), new), min_size=1, max_size=6)


def edited(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for part, length, new in changes:
        start = round(part * len(content))
        content = content[:start] + new + content[start + length :]
    return content


@contextmanager
def no_hang() -> Iterator[None]:
    """Ends the run, with a traceback, when what is inside takes a minute."""
    faulthandler.dump_traceback_later(_LONGEST_CASE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
