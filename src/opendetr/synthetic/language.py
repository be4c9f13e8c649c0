"""Expressions, captions and questions about the objects of a scene, each true of the scene, with character spans.

A span is (begin, end): the characters ``text[begin:end]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from opendetr.synthetic.config import THING_NAMES
from opendetr.synthetic.looks import COLOURS
from opendetr.synthetic.random_numbers import chance, integer
from opendetr.synthetic.textures import NAMED_TEXTURES

Item = TypeVar("Item")
Span = tuple[int, int]
Kind = Literal["attribute", "relational"]
SIZES = ("small", "large")
QUESTION_TYPES = ("count", "colour", "shape", "existence", "comparison")
ANSWERS = (*map(str, range(9)), *COLOURS, *THING_NAMES, "yes", "no")
"""All answers of questions."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_ANY_SHAPE = "object"
_ATTRIBUTES = ("size", "colour", "texture")  # in the order of the words
# Relation -> axis (0 x, 1 y) and sign: a is in this relation to b if sign * (centre of a - centre of b) > 0.
_RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
_CLEAR = 0.08  # minimum distance along the axis between the target and the object that it is related to, of the image
_EXTRA_ATTRIBUTE = 0.25  # probability that an expression states more attributes than it needs
_TRIES = 30


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object with the words that describe it.

    Attributes:
        shape: the name of its class.
        colour: one of `looks.COLOURS`.
        texture: one of `textures.NAMED_TEXTURES`.
        size: "small" or "large".
        centre: centre (x, y) of its box, in 0..1 of the image.
    """

    shape: str
    colour: str
    texture: str
    size: str
    centre: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A description of objects: the attributes that it states; None for those that it does not."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    def matches(self, thing: Thing) -> bool:
        """Whether the phrase is true of an object."""
        return all(value in (None, getattr(thing, name)) for name, value in vars(self).items())

    def matching(self, things: Sequence[Thing]) -> list[int]:
        """The indices of the objects that the phrase is true of."""
        return [index for index, thing in enumerate(things) if self.matches(thing)]

    def words(self, *, plural: bool = False) -> str:
        """The phrase without an article, such as "large red striped ring"."""
        noun = self.shape or _ANY_SHAPE
        ending = ("es" if noun.endswith("s") else "s") if plural else ""
        stated = [value for name in _ATTRIBUTES if (value := getattr(self, name))]
        return " ".join([*stated, noun + ending])

    def with_article(self) -> str:
        """The phrase with "a" or "an"."""
        words = self.words()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A referring expression.

    Attributes:
        text: such as "the large striped ring left of the red star".
        target: index of the only object that it is true of.
        span: the words that describe the target, without the article.
        kind: "attribute" if the attributes of the target suffice; "relational" if the relation is needed.
    """

    text: str
    target: int
    span: Span
    kind: Kind


class Mention(NamedTuple):
    """A part of a text and the indices of the objects that it names."""

    span: Span
    things: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text that names several objects, and what each part of it names."""

    text: str
    mentions: tuple[Mention, ...]


@dataclass(frozen=True, kw_only=True)
class Question(Caption):
    """A question with its answer.

    Attributes:
        type: one of `QUESTION_TYPES`.
        answer: one of `ANSWERS`.
    """

    type: str
    answer: str


def related(thing: Thing, relation: str, other: Thing) -> float:
    """The distance along the axis of a relation, in 0..1 of the image; positive if the relation is true."""
    axis, sign = _RELATIONS[relation]
    return sign * (thing.centre[axis] - other.centre[axis])


def refer(rng: np.random.Generator, things: Sequence[Thing], target: int, kind: Kind) -> Expression | None:
    """An expression that is true only of the target; None if there is none of this kind."""
    if kind == "attribute":
        unique = [phrase for phrase in _phrases(things[target]) if phrase.matching(things) == [target]]
        if not unique:
            return None
        words = _brief(rng, unique).words()
        return Expression(text=f"the {words}", target=target, span=_span("the ", words), kind=kind)
    candidates = list(_relations(things, target))
    if not candidates:
        return None
    phrase, relation, landmark = _pick(rng, candidates)
    named = [phrase for phrase in _phrases(things[landmark]) if phrase.matching(things) == [landmark]]
    words = phrase.words()
    text = f"the {words} {relation} the {_brief(rng, named).words()}"
    return Expression(text=text, target=target, span=_span("the ", words), kind=kind)


def _relations(things: Sequence[Thing], target: int) -> Iterator[tuple[Phrase, str, int]]:
    """Phrase of the target, relation and landmark that together are true of the target only, which no phrase is."""
    landmarks = [
        index
        for index in range(len(things))
        if index != target and any(phrase.matching(things) == [index] for phrase in _phrases(things[index]))
    ]
    for phrase in _phrases(things[target]):
        rivals = [index for index in phrase.matching(things) if index != target]
        for landmark in landmarks if rivals else ():
            for relation in _RELATIONS:
                if related(things[target], relation, things[landmark]) >= _CLEAR and not any(
                    related(things[rival], relation, things[landmark]) > 0 for rival in rivals
                ):
                    yield phrase, relation, landmark


def describe(rng: np.random.Generator, things: Sequence[Thing]) -> Caption:
    """A caption of two to four parts, each of which names all objects that it is true of, and no object twice."""
    wanted, named = integer(rng, 2, 4), set[int]()
    parts: list[tuple[Phrase, list[int]]] = []
    for _ in range(_TRIES):
        thing = things[integer(rng, 0, len(things) - 1)]
        phrase = _pick(rng, [phrase for phrase in _phrases(thing) if phrase.shape])
        matching = phrase.matching(things)
        if len(parts) < wanted and not named & set(matching):
            parts.append((phrase, matching))
            named |= set(matching)
    text, mentions = "", []
    for index, (phrase, matching) in enumerate(parts):
        text += "" if not index else " and " if index == len(parts) - 1 else ", "
        words = phrase.words(plural=len(matching) > 1)
        text += f"{_NUMBERS[len(matching)]} " if len(matching) > 1 else phrase.with_article().removesuffix(words)
        mentions.append(Mention(_span(text, words), tuple(matching)))
        text += words
    return Caption(text=text, mentions=tuple(mentions))


def ask(rng: np.random.Generator, things: Sequence[Thing], question_type: str) -> Question | None:
    """A question of a type; None if the objects allow none."""
    return _QUESTIONS[question_type](rng, things)


def _count(rng: np.random.Generator, things: Sequence[Thing]) -> Question:
    """Three in four phrases are true of an object."""
    thing = things[integer(rng, 0, len(things) - 1)]
    if chance(rng, 0.25):
        thing = replace(thing, colour=COLOURS[integer(rng, 0, len(COLOURS) - 1)])
    phrase = _pick(rng, [phrase for phrase in _phrases(thing) if sum(map(bool, vars(phrase).values())) <= 2])
    matching = phrase.matching(things)
    return _question("how many {} are there?", "count", str(len(matching)), (phrase, matching, True))


def _colour(rng: np.random.Generator, things: Sequence[Thing]) -> Question | None:
    return _attribute(rng, things, "colour", "what colour is the {}?")


def _shape(rng: np.random.Generator, things: Sequence[Thing]) -> Question | None:
    return _attribute(rng, things, "shape", "what shape is the {}?")


def _attribute(rng: np.random.Generator, things: Sequence[Thing], name: str, text: str) -> Question | None:
    """A question about an attribute of an object that is unique without it."""
    candidates = [
        (phrase, index)
        for index, thing in enumerate(things)
        for phrase in _phrases(thing)
        if getattr(phrase, name) is None and phrase.matching(things) == [index]
    ]
    if not candidates:
        return None
    phrase, index = _pick(rng, candidates)
    return _question(text, name, getattr(things[index], name), (phrase, [index], False))


def _existence(rng: np.random.Generator, things: Sequence[Thing]) -> Question | None:
    """Half of the answers are yes. For no, the phrase mixes attributes of several objects, so that each occurs."""
    wanted = chance(rng, 0.5)
    for _ in range(_TRIES):
        first, second = (things[integer(rng, 0, len(things) - 1)] for _ in range(2))
        mixed = first if wanted else replace(first, colour=second.colour, texture=second.texture)
        phrase = _pick(
            rng, [phrase for phrase in _phrases(mixed) if phrase.shape and (phrase.colour or phrase.texture)]
        )
        matching = phrase.matching(things)
        if bool(matching) == wanted:
            article = phrase.with_article().split(" ", 1)[0]
            answer = "yes" if wanted else "no"
            return _question(f"is there {article} {{}}?", "existence", answer, (phrase, matching, False))
    return None


def _comparison(rng: np.random.Generator, things: Sequence[Thing]) -> Question | None:
    """Half of the answers are yes."""
    wanted = chance(rng, 0.5)
    for _ in range(_TRIES):
        pair = [things[integer(rng, 0, len(things) - 1)] for _ in range(2)]
        name = (*_ATTRIBUTES, "shape")[integer(rng, 0, 3)]
        first, second = (Phrase(**{name: getattr(thing, name)}) for thing in pair)
        more, less = first.matching(things), second.matching(things)
        if first != second and (len(more) > len(less)) == wanted:
            answer = "yes" if wanted else "no"
            groups = (first, more, True), (second, less, True)
            return _question("are there more {} than {}?", "comparison", answer, *groups)
    return None


_QUESTIONS = {
    "count": _count, "colour": _colour, "shape": _shape, "existence": _existence, "comparison": _comparison
}  # fmt: skip


def _question(text: str, type_: str, answer: str, *groups: tuple[Phrase, list[int], bool]) -> Question:
    """A question.

    Args:
        text: the question with "{}" for each group.
        type_: its type.
        answer: its answer.
        groups: phrase, matching objects, and whether the phrase is in the plural.
    """
    asked, mentions = "", []
    for part, (phrase, matching, plural) in zip(text.split("{}"), groups, strict=False):
        words = phrase.words(plural=plural)
        asked += part
        mentions.append(Mention(_span(asked, words), tuple(matching)))
        asked += words
    return Question(text=asked + text.rsplit("{}", 1)[1], mentions=tuple(mentions), type=type_, answer=answer)


def _phrases(thing: Thing) -> list[Phrase]:
    """All true phrases of an object, those with fewer words first. A phrase without shape states an attribute."""
    phrases = []
    for count in range(len(_ATTRIBUTES) + 1):
        for stated in combinations(_ATTRIBUTES, count):
            values = {name: getattr(thing, name) for name in stated}
            phrases.append(Phrase(shape=thing.shape, **values))
            if stated:
                phrases.append(Phrase(**values))
    return phrases


def _brief(rng: np.random.Generator, phrases: Sequence[Phrase]) -> Phrase:
    """A random one of the shortest phrases; sometimes one that states more than needed."""
    if chance(rng, _EXTRA_ATTRIBUTE):
        return _pick(rng, phrases)
    lengths = [len(phrase.words().split()) for phrase in phrases]
    return _pick(rng, [phrase for phrase, length in zip(phrases, lengths, strict=True) if length == min(lengths)])


def _pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[integer(rng, 0, len(items) - 1)]


def _span(before: str, words: str) -> Span:
    return len(before), len(before) + len(words)


def vocabulary() -> tuple[str, ...]:
    """All words of expressions, captions and questions, in lower case and sorted."""
    nouns = [phrase.words(plural=plural) for shape in (*THING_NAMES, None) for plural in (False, True)
             for phrase in [Phrase(shape=shape)]]  # fmt: skip
    templates = "the a an and is are there how many what colour shape more than"
    words = [
        *nouns,
        *SIZES,
        *COLOURS,
        *NAMED_TEXTURES,
        *_NUMBERS[2:],
        *" ".join(_RELATIONS).split(),
        *templates.split(),
    ]
    return tuple(sorted(set(words)))
