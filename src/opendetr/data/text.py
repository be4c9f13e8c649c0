"""Text files written by people and other programs: lists, labels, tables, descriptions."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from opendetr.data.faults import FaultKind
from opendetr.data.paths import is_file
from opendetr.data.records import FaultError

MAX_BYTES = 256 * 2**20
MAX_XML_BYTES = 2**30
_HEAD_BYTES = 4096  # of a file, to tell what it contains
# A declaration in the encodings that XML parsers know; all others spell ASCII characters as UTF-8 does.
_ENTITY_MARKS = tuple("<!ENTITY".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
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


def first_line(path: Path) -> str:
    """The first line of a text file that is not empty; "" if the file cannot be read."""
    try:
        with path.open("rb") as file:
            lines = file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").split("\n")
    except OSError:
        return ""
    return next((line for line in lines if line.strip()), "")


def read_xml(path: Path, *, max_bytes: int = MAX_XML_BYTES) -> ET.Element:
    """The root of an XML file. Declarations of entities are refused: they can expand without limit, or name files.

    Raises:
        FaultError: the file cannot be read, is too large, is not XML, or declares entities.
    """
    try:
        length = path.stat().st_size
        if length > max_bytes:
            detail = f"has {length:,} bytes; at most {max_bytes:,} are allowed"
            raise FaultError(FaultKind.BROKEN_FILE, path, "", detail)
        content = path.read_bytes()
        if any(mark in content for mark in _ENTITY_MARKS):
            raise FaultError(FaultKind.BROKEN_FILE, path, "", "declares XML entities, which are not read; remove them")
        return ET.fromstring(content)
    except ET.ParseError as error:
        line, column = error.position
        at, detail = f"line {line}, column {column + 1}", f"broken XML: {error.msg.split(':')[0]}"
        raise FaultError(FaultKind.BROKEN_FILE, path, at, detail) from None
    except FaultError:
        raise
    except (OSError, ValueError, LookupError) as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"cannot be read ({error})") from None


def root_tag(path: Path) -> str | None:
    """The name of the outermost tag of an XML file, read from its beginning; None if there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    text = re.sub(r"<!--.*?(-->|$)", "", head.decode(encoding, "replace"), flags=re.DOTALL)
    found = re.search(r"<([A-Za-z_][\w:.-]*)", text)
    return found[1] if found else None


def pixels(value: float) -> float:
    """A length in pixels, rounded to a millionth of a pixel.

    Files store fractions of the image, or corners. Rounding removes the error of the conversion, so a whole number of
    pixels stays whole.
    """
    return round(value, 6)
