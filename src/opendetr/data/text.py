"""Text files written by people and other programs: lists, labels, tables, descriptions."""

from __future__ import annotations

import codecs
from pathlib import Path

from opendetr.data.faults import FaultKind
from opendetr.data.paths import is_file
from opendetr.data.records import FaultError

MAX_BYTES = 256 * 2**20
# Encodings by byte order mark. A file without a mark is UTF-8.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark. Line ends become "\\n".

    Raises:
        FaultError: `path` is not a file, the file is larger than `max_bytes`, or it is not such a text.
    """
    if not is_file(path):
        raise FaultError(FaultKind.BROKEN_FILE, path, "", "not a file" if path.exists() else "no such file")
    try:
        length = path.stat().st_size
        if length > max_bytes:
            raise FaultError(
                FaultKind.BROKEN_FILE, path, "", f"has {length:,} bytes; at most {max_bytes:,} are allowed"
            )
        content = path.read_bytes()
    except OSError as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"cannot be read ({error.strerror})") from None
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} is not valid {encoding.upper()}; save the file in UTF-8"
        raise FaultError(FaultKind.BROKEN_FILE, path, "", detail) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def pixels(value: float) -> float:
    """A length in pixels, rounded to a millionth of a pixel.

    Files store fractions of the image, or corners. Rounding removes the error of the conversion, so a whole number of
    pixels stays whole.
    """
    return round(value, 6)
