"""Answers to questions as the outputs of MDETR's answer heads.

A question concerns the head "type" and the head of its type. GQA's answers are in files beside its annotations; those
of CLEVR and of described scenes are listed here: yes and no, numbers, and words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from opendetr.config import ConfigError
from opendetr.data.records import DataError

AnswerDecoder = Callable[[Mapping[str, int]], tuple[str, tuple[str, ...]]]
"""Turns the best output of each answer head into the answer, and the names of the heads that it comes from."""
Questions = Literal["none", "gqa", "gqa-unified", "clevr", "scenes"]
_GQA_TYPES = ("obj", "attr", "rel", "global", "cat")  # in the order of the type's answers
_GQA_BY_TYPE, _GQA_ALL = "gqa_answer2id_by_type.json", "gqa_answer2id.json"
_GQA_PLACE = "https://zenodo.org/record/4729015"
_UNKNOWN = "unknown"  # GQA's answer for answers that are not listed
_YES_NO = ("no", "yes")


@dataclass(frozen=True)
class AnswerWords:
    """Answers by the heads "type", "binary" (yes and no), "reg" (numbers) and "attr" (words).

    Attributes:
        words: the words, in the order of the head's outputs.
        numbers: how many numbers there are, from 0.
    """

    words: tuple[str, ...]
    numbers: int = 20

    def encode(self, answer: str) -> dict[str, int] | None:
        """The outputs of the heads that a question with this answer concerns; None for an answer that is not listed."""
        if answer in _YES_NO:
            return {"type": 0, "binary": _YES_NO.index(answer)}
        if answer in self.words:
            return {"type": 1, "attr": self.words.index(answer)}
        if answer.isascii() and answer.isdigit() and int(answer) < self.numbers:
            return {"type": 2, "reg": int(answer)}
        return None

    def decode(self, heads: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
        """The answer of the best output of each head, and the heads that it comes from; see `AnswerDecoder`."""
        name = ("binary", "attr", "reg")[heads["type"]]
        index = heads[name]
        if name == "binary":
            answer = _YES_NO[index]
        elif name == "attr":
            answer = self.words[index] if index < len(self.words) else _UNKNOWN
        else:
            answer = str(index)
        return answer, ("type", name)


ANSWER_WORDS: Mapping[Questions, AnswerWords] = {
    "clevr": AnswerWords(
        ("small", "large", "gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow", "cube", "sphere",
         "cylinder", "rubber", "metal")
    ),
    "scenes": AnswerWords(
        ("red", "orange", "yellow", "green", "blue", "purple", "white", "disc", "ring", "crescent", "drop", "triangle",
         "square", "hexagon", "cross", "star", "heart", "arrow", "gear")
    ),
}  # fmt: skip


def encode_answer(questions: Questions, extras: Mapping[str, Any]) -> dict[str, int] | None:
    """The outputs of the answer heads for the question of an image; None if it has none.

    Args:
        questions: the kind of questions.
        extras: the annotations of the image, see `data.formats.captions`.

    Raises:
        DataError: the kind of questions has no such answer or type, or GQA's lists of answers are missing.
    """
    if extras.get("answer") is None or questions == "none":
        return None
    answer, type_ = str(extras["answer"]), extras.get("question_type")
    if questions in ANSWER_WORDS:
        heads = ANSWER_WORDS[questions].encode(answer)
        if heads is None:
            raise DataError(f"the answer {answer!r} to {extras['caption']!r} is not one of the questions {questions!r}")
        return heads
    if type_ not in _GQA_TYPES:
        raise DataError(f"the type {type_!r} of {extras['caption']!r} is none of GQA's: {', '.join(_GQA_TYPES)}")
    if "answer_ids" not in extras:
        raise DataError(
            f"GQA's lists of answers are missing; download the annotations from {_GQA_PLACE} and put their "
            f"{_GQA_BY_TYPE} and {_GQA_ALL} beside the annotations of the dataset"
        )
    unified = questions == "gqa-unified"
    return {name: index for name, index in extras["answer_ids"].items() if (name == "total") == unified}


def gqa_answer_ids(folder: Path, question_type: Any, answer: Any) -> dict[str, int] | None:
    """The outputs of GQA's answer heads, by the lists of answers in a folder; None without them or for other types."""
    if question_type not in _GQA_TYPES or not all((folder / name).is_file() for name in (_GQA_BY_TYPE, _GQA_ALL)):
        return None
    by_type, total = _gqa_lists(folder)
    answer = str(answer)
    of_type = by_type[f"answer_{question_type}"]
    return {
        "type": _GQA_TYPES.index(question_type),
        question_type: of_type.get(answer, of_type.get(_UNKNOWN, 0)),
        "total": total.get(answer, total.get(_UNKNOWN, 0)),
    }


def gqa_decoder(folder: Path) -> AnswerDecoder:
    """The function that turns the best output of each of GQA's answer heads into an answer; see `AnswerDecoder`.

    Args:
        folder: where GQA's lists of answers are.

    Raises:
        ConfigError: they are missing.
    """
    if not all((folder / name).is_file() for name in (_GQA_BY_TYPE, _GQA_ALL)):
        raise ConfigError(
            f"GQA's lists of answers are missing; download the annotations from {_GQA_PLACE} and put their "
            f"{_GQA_BY_TYPE} and {_GQA_ALL} into {folder}"
        )
    by_type, total = _gqa_lists(folder)
    answers = {name: {index: answer for answer, index in by_type[f"answer_{name}"].items()} for name in _GQA_TYPES}
    answers["total"] = {index: answer for answer, index in total.items()}

    def decode(heads: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
        if "type" not in heads:
            return answers["total"].get(heads["total"], _UNKNOWN), ("total",)
        name = _GQA_TYPES[heads["type"]]
        return answers[name].get(heads[name], _UNKNOWN), ("type", name)

    return decode


@lru_cache(maxsize=4)
def _gqa_lists(folder: Path) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    from pydantic import TypeAdapter, ValidationError

    def read(name: str, type_: Any) -> Any:
        try:
            return TypeAdapter(type_).validate_python(json.loads((folder / name).read_bytes()))
        except (ValueError, ValidationError):
            raise DataError(f"{folder / name}: not a list of answers with their numbers; download it again") from None

    by_type = read(_GQA_BY_TYPE, dict[str, dict[str, int]])
    missing = [f"answer_{name}" for name in _GQA_TYPES if f"answer_{name}" not in by_type]
    if missing:
        raise DataError(f"{folder / _GQA_BY_TYPE}: has no answers of {missing[0]!r}; download it again")
    return by_type, read(_GQA_ALL, dict[str, int])
