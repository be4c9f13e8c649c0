"""The first bytes of image files, by which they are recognised whatever their name is."""

from __future__ import annotations

from pathlib import Path

_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    b"\0\0\0\x0cjP  \r\n\x87\n",
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_LENGTH = 64


def is_image_content(path: Path) -> bool:
    """Whether a file begins like an image, whatever its name is. False for a file that cannot be read."""
    start = _start(path)
    if start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return True
    return bool(_brands(start) & (_HEIF_BRANDS | _AVIF_BRANDS))


def is_heif(path: Path) -> bool:
    """Whether a file begins like a HEIF image, such as those with the suffix .heic."""
    brands = _brands(_start(path))
    return bool(brands & _HEIF_BRANDS) and not brands & _AVIF_BRANDS


def is_avif(path: Path) -> bool:
    """Whether a file begins like an AVIF image."""
    return bool(_brands(_start(path)) & _AVIF_BRANDS)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LENGTH)
    except OSError:
        return b""


def _brands(start: bytes) -> set[bytes]:
    """The major and the compatible brands of a file in the ISO base media format; empty for other files."""
    if start[4:8] != b"ftyp":
        return set()
    box = start[: int.from_bytes(start[:4], "big")]
    return {box[8:12], *(box[position : position + 4] for position in range(16, len(box) - 3, 4))}
