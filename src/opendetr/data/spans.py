"""Spans of captions. A span (begin, end) is the characters ``caption[begin:end]``, which name an object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

Span = tuple[int, int]
_OPPOSITE = {"left": "right", "right": "left"}


def has_token(span: Span, caption: str) -> bool:
    """Whether a span inside a caption has a token by MDETR's rule, see `Tokens.map_of`, in every vocabulary.

    All characters but spaces belong to a token. A boundary on spaces moves inwards, by at most two characters.
    """

    def place(*characters: int) -> int | None:
        inside = (at for at in characters if 0 <= at < len(caption))
        return next((at for at in inside if not caption[at].isspace()), None)

    begin, end = span
    first, last = place(begin, begin + 1, begin + 2), place(end - 1, end - 2, end - 3)
    return first is not None and last is not None and first <= last


def mirrored(caption: str, spans: Sequence[Sequence[Span]]) -> tuple[str, list[tuple[Span, ...]]]:
    """The caption of a mirrored image, with "left" and "right" exchanged, and the spans at their new characters."""
    pieces = re.split(r"\b(left|right)(?=(?:most)?\b)", caption, flags=re.IGNORECASE)
    changed = [_exchanged(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
    before, after = ([0, *accumulate(map(len, each))] for each in (pieces, changed))
    places = list(zip(pairwise(before), pairwise(after), strict=True))

    def moved(span: Span) -> Span:
        begin, end = span
        new_begin = next((new + min(begin - old, stop - new) for (old, old_stop), (new, stop) in places
                          if old <= begin < old_stop), after[-1])  # fmt: skip
        new_end = next((stop - min(old_stop - end, stop - new) for (old, old_stop), (new, stop) in places
                        if old < end <= old_stop), new_begin)  # fmt: skip
        return new_begin, new_end

    return "".join(changed), [tuple(map(moved, of_object)) for of_object in spans]


def _exchanged(word: str) -> str:
    opposite = _OPPOSITE[word.lower()]
    return opposite.upper() if word.isupper() else opposite.capitalize() if word[0].isupper() else opposite


def counts_bytes(caption: str, spans: Sequence[Span]) -> int:
    """How many more spans end at the ends of words if they count bytes of UTF-8 instead of characters.

    Spans that are the same in bytes do not count, so the result is 0 for a caption of ASCII characters.
    """
    if caption.isascii():
        return 0
    encoded = caption.encode()
    more = 0
    for begin, end in spans:
        as_bytes = len(encoded[:begin].decode(errors="replace")), len(encoded[:end].decode(errors="replace"))
        if as_bytes != (begin, end):
            more += _ends_at_words(as_bytes, caption) - _ends_at_words((begin, end), caption)
    return more


def _ends_at_words(span: Span, caption: str) -> bool:
    """Whether a span cuts no word and has no space at its ends."""
    begin, end = span
    if not 0 <= begin < end <= len(caption) or caption[begin].isspace() or caption[end - 1].isspace():
        return False
    cuts = [caption[at - 1 : at + 1] for at in (begin, end) if 0 < at < len(caption)]
    return not any(cut.isalnum() for cut in cuts)
