"""Converts trees of frozen dataclasses to plain values for YAML and JSON, and back with every key checked.

Unknown names of settings, options and values get a suggestion: first by meaning, from one table of synonyms, then by
spelling.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

Tree = TypeVar("Tree")
Function = TypeVar("Function", bound=Callable[..., Any])

# Words of one meaning, one row for each: our options and settings, and the words of other tools.
_SYNONYMS = tuple(
    frozenset(row.split())
    for row in (
        "lr learning-rate lr0 base-lr init-lr lrate eta",
        "backbone-learning-rate lr-backbone backbone-lr",
        "floor lrf min-lr final-lr",
        "image-size imgsz img img-size imgs size input-size resolution resize short-side",
        "batch-size batch bs b train-batch-size per-device-train-batch-size samples-per-gpu images-per-batch",
        "epochs epoch num-epochs n-epochs max-epochs num-train-epochs e",
        "max-steps steps iterations iters max-iter max-iters num-steps",
        "time duration max-time",
        "min-score conf confidence conf-thres conf-threshold threshold thresh score score-thr score-threshold",
        "weights checkpoint ckpt pretrained pretrained-weights model-path init-weights load-from finetune",
        "model arch architecture network model-name",
        "config cfg config-file yaml hyp",
        "set changes cfg-options opt opts override overrides",
        "data dataset data-path data-dir dataset-dir dataset-file coco-path root",
        "source sources src input inputs image images img-path video videos folder",
        "boxes xyxy bbox bboxes xyxyn xywh",
        "scores score conf confidence confidences probs",
        "labels cls class-id class-ids pred-classes",
        "names class-names",
        "masks mask segmentation",
        "track-ids id ids tracker-id track-id",
        "out name project output output-dir out-dir save-dir work-dir save-path o run-name exist-ok",
        "workers num-workers nw dataloader-num-workers",
        "processes gpus num-gpus nproc nproc-per-node devices world-size",
        "device gpu cuda",
        "accumulate gradient-accumulation-steps accumulate-grad-batches accumulation grad-accum",
        "precision half fp16 bf16 amp mixed-precision dtype",
        "weight-decay wd",
        "clip-norm clip-max-norm grad-clip max-grad-norm gradient-clip-val",
        "warmup-steps warmup warmup-epochs warmup-iters",
        "schedule scheduler lr-scheduler lr-scheduler-type cos-lr",
        "step-at lr-drop milestones",
        "ema ema-decay model-ema use-ema",
        "patience early-stopping early-stop",
        "best-by metric monitor metric-for-best-model fitness",
        "freeze frozen freeze-layers freeze-backbone",
        "freeze-detector frozen-weights",
        "augment aug augmentation augmentations hsv-h hsv-s hsv-v mixup mosaic-prob",
        "num-queries queries max-det max-detections max-objects",
        "gradient-checkpointing activation-checkpointing checkpointing",
        "seed random-seed manual-seed",
        "num-evaluations eval-steps eval-interval val-interval save-period",
        "tensorboard log logger report-to",
        "crops save-crop save-crops",
        "yolo save-txt save-labels",
        "predictions save-json results dump",
        "panoptic segment segmentation",
        "draw save-img visualize",
        "split subset",
        "to format export-format",
        "encoder-layers enc-layers",
        "decoder-layers dec-layers",
        "ffn-width dim-feedforward",
        "num-heads nheads heads",
        "class-weight cls cls-loss-coef class-loss-coef",
        "l1-weight bbox-loss-coef box",
        "giou-weight giou-loss-coef",
        "class-cost set-cost-class",
        "l1-cost set-cost-bbox",
        "giou-cost set-cost-giou",
        "train fit finetune",
        "eval evaluate val validate test benchmark",
        "predict detect infer inference",
        "export convert-model",
        "models list model-zoo zoo",
        "demo example",
    )
)

# What to do instead of an option of other tools that does not exist here: message -> names of the option.
_NOTES = {
    "DETR needs no non-maximum suppression, so there is no IoU threshold": "iou nms iou-thres iou-threshold nms-thres "
    "agnostic-nms",
    "the classes are those of the dataset or of the weights": "classes class names nc num-classes single-cls",
    "only training has a precision: opendetr train my-data --precision bf16": "half fp16 bf16 amp precision dtype",
    "images are resized as in training, where --image-size sets the size": "imgsz img img-size imgs size input-size "
    "resolution resize image-size",
    "--set recipe.optimizer=sgd replaces AdamW": "optimizer optim momentum",
}

# The extra of each optional package, as in pyproject.toml.
_EXTRAS = {
    "av": "video",
    "opencv-python-headless": "video",
    "pillow-heif": "heif",
    "transformers": "text",
    "tokenizers": "text",
    "timm": "text",
    "tensorboard": "log",
    "wandb": "log",
    "mlflow": "log",
    "ipywidgets": "notebook",
    "supervision": "supervision",
    "trackeval": "track",
    "trackers": "track",
}


class ConfigError(ValueError):
    """A configuration cannot be used. The message is one line."""


class SettingError(ConfigError):
    """A setting is unknown, or its value is not valid. The command line treats this as bad usage.

    Args:
        text: what is wrong.
        setting: the full name of the setting whose value is not valid, such as "recipe.batch_size". The message
            begins with it.
        argument: the name of the argument that gave the value, if there is one. The message then begins with it.
    """

    def __init__(self, text: str, *, setting: str = "", argument: str = "") -> None:
        super().__init__(f"{argument}: {text}" if argument else f"config: {setting}: {text}" if setting else text)
        self.text, self.setting, self.argument = text, setting, argument

    def naming(self, arguments: Mapping[str, str]) -> SettingError:
        """The same error with the argument that gave the value, if the setting is in `arguments`: setting -> name."""
        name = arguments.get(self.setting)
        return SettingError(self.text, setting=self.setting, argument=name) if name else self


class MissingPackageError(ConfigError, ImportError):
    """An optional package is not installed. The message is one line with the command that installs it.

    Args:
        what: what needs the package.
        package: its name in a registry of packages.

    Attributes:
        what, package: the arguments.
        needs: the message without `what`.
    """

    def __init__(self, what: str, package: str) -> None:
        self.what, self.package, self.needs = what, package, needs_package(package)
        super().__init__(f"{what}: {self.needs}")


def needs_package(package: str) -> str:
    """An ending for a message: a package is needed, and the command that installs it with the others of its extra."""
    what = f"'opendetr[{_EXTRAS[package]}]'" if package in _EXTRAS else package
    return f"needs {package}; install it with `python -m pip install {what}`"


def to_dict(tree: Any) -> dict[str, Any]:
    """Convert a tree of dataclasses to nested dicts of plain values; tuples become lists."""
    return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def replaced(tree: Tree, changes: Mapping[str, Any], path: str = "") -> Tree:
    """A copy of `tree` with the fields in `changes` (nested dicts) replaced.

    Args:
        tree: a frozen dataclass, possibly with others as fields.
        changes: new values by field name.
        path: prefix of the field names in messages, such as "model.".

    Raises:
        SettingError: a key is unknown (the message suggests the nearest valid one), or a value is not valid.
    """
    return _replaced(tree, changes, path, tuple(_leaves(tree, path)))


def _replaced(tree: Tree, changes: Mapping[str, Any], path: str, known: tuple[str, ...]) -> Tree:
    """`replaced`, for a part of the tree whose settings have the full names `known`."""
    hints = get_type_hints(type(tree))
    valid = {field.name for field in dataclasses.fields(tree) if field.init}  # type: ignore[arg-type]
    new: dict[str, Any] = {}
    for name, value in changes.items():
        where = f"{path}{name}"
        if name not in valid:
            raise SettingError(f"config: unknown key {where!r}; {_suggestion(str(name), valid, path, known)}")
        current = getattr(tree, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise SettingError(f"config: {where} is a group of settings, got {value!r}; set one of its settings")
            new[name] = _replaced(current, value, f"{where}.", known)
        else:
            new[name] = _validated(hints[name], value, where)
    try:
        return dataclasses.replace(tree, **new)  # type: ignore[type-var]
    except ValueError as error:
        setting, _, text = str(error).partition(": ")
        if setting in known:
            raise SettingError(text, setting=setting) from None
        raise SettingError(f"config: {error}") from None


def _validated(hint: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise SettingError(explained(error), setting=where) from None


def explained(error: ValidationError) -> str:
    """What is wrong with a value and what is expected instead, such as "'1.5' is not a whole number"."""
    fault = error.errors()[0]
    value, context = fault["input"], fault.get("ctx", {})
    choices = re.findall(r"'([^']*)'", str(context.get("expected") or fault["msg"]))
    if fault["type"] == "literal_error":
        return unknown(value, choices)
    if fault["type"] == "value_error":
        return unknown(value, choices[1:]) if "is not one of" in fault["msg"] else str(context.get("error"))
    limits = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
    if fault["type"] in limits:
        words, bound = limits[fault["type"]]
        return f"expected {words} {context[bound]}, got {value}"
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text",
            "tuple": "a list", "list": "a list"}.get(fault["type"].partition("_")[0])  # fmt: skip
    return f"{value!r} is not {kind}" if kind else f"{value!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def unknown(value: Any, choices: Iterable[str]) -> str:
    """The message for a value that is not one of `choices`: the nearest ones, or all."""
    choices = list(choices)
    near = suggestions(str(value), choices)
    return f"{value!r} is not one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")


def near_name(word: str, names: Iterable[str]) -> str | None:
    """The name that is nearest to a word by spelling, without regard to capitals; None if none is near."""
    by_plain = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(word.casefold(), by_plain, n=1)
    return by_plain[near[0]] if near else None


def some_of(names: Sequence[str], count: int = 5) -> str:
    """The first names as text; it ends in "..." if there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def suggestions(word: str, names: Iterable[str]) -> list[str]:
    """The names that the user may have meant: those of equal meaning, else the nearest by spelling; often none.

    Args:
        word: an unknown name, such as "lr0". Dashes before it, underscores and capitals do not matter.
        names: the valid names. The meaning of a dotted name is that of its last part.
    """
    names = list(names)
    near = difflib.get_close_matches(_plain_name(word), dict.fromkeys(map(_plain_name, names)), n=1, cutoff=0.7)
    return synonyms(word, names) or [name for name in names if _plain_name(name) in near]


def synonyms(word: str, names: Iterable[str]) -> list[str]:
    """The names that mean the same as the word; equal names first."""
    wanted, names = _plain_name(word), list(names)
    alike = frozenset().union(*(row for row in _SYNONYMS if wanted in row))
    equal = [name for name in names if _plain_name(name) == wanted]
    return equal + [name for name in names if name not in equal and _plain_name(name) in alike]


def habit_note(word: str) -> str | None:
    """What to do instead of an option of other tools that does not exist here; None for another word."""
    return next((note for note, words in _NOTES.items() if _plain_name(word) in words.split()), None)


def hint(word: str, names: Sequence[str]) -> str:
    """What to use instead of an unknown name: one of `names`, or what `habit_note` says."""
    near = synonyms(word, names)
    note = None if near else habit_note(word)
    near = near or suggestions(word, names)
    if note or near:
        return note or f"did you mean {near[0]}?"
    if "changes" in names:
        return "other settings are given as changes, such as changes=['recipe.weight_decay=0.001']"
    return f"there are {', '.join(names)}"


def suggesting(function: Function) -> Function:
    """A decorator that explains unknown keyword arguments, which may be habits from other tools.

    The function then raises TypeError with the nearest argument, or with what to do instead.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - parameters.keys():
            raise TypeError(f"{function.__name__} has no argument {name!r}; {hint(name, names)}")
        return function(*args, **kwargs)

    return cast(Function, call)


def _plain_name(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("_", "-").lower()


def _leaves(tree: Any, path: str) -> Iterator[str]:
    """The full names of all settings in a tree."""
    for field in dataclasses.fields(tree):
        value, where = getattr(tree, field.name), f"{path}{field.name}"
        if field.init and where != "name":  # the name of the model is no setting
            yield from _leaves(value, f"{where}.") if dataclasses.is_dataclass(value) else (where,)


def setting_names(tree: Any) -> list[str]:
    """The full names of all settings in a tree of dataclasses, such as "recipe.learning_rate"."""
    return list(_leaves(tree, ""))


def _suggestion(name: str, valid: set[str], path: str, known: tuple[str, ...]) -> str:
    here = [where for where in known if where.startswith(path)]
    groups = [f"{path}{group}" for group in sorted(valid)]
    near = suggestions(name, here) or suggestions(name, known) or suggestions(name, groups)
    return f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(sorted(valid))}"


def range_fault(value: float | None, low: float, high: float | None = None) -> str | None:
    """What is wrong with a number that should be in low..high, in a few words; None if nothing is. None is in range."""
    if value is None or (low <= value and (high is None or value <= high)):
        return None
    return f"expected {f'at least {low}' if high is None else f'a number from {low} to {high}'}, got {value}"


def require_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raise ConfigError for a number out of its range. The command line uses the same words."""
    fault = range_fault(value, low, high)
    if fault:
        raise ConfigError(f"{name}: {fault}")


def parse_assignment(text: str) -> dict[str, Any]:
    """Parse "model.num_queries=50" to {"model": {"num_queries": 50}}; the value is read as YAML.

    Raises:
        SettingError: there is no "=", or the value is not valid YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SettingError(f"--set {text!r}: write it as key=value, for example model.num_queries=50")
    try:
        change: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise SettingError(f"--set {text!r}: {value!r} is not valid YAML; quote the value") from None
    for part in reversed(name.strip().split(".")):
        change = {part: change}
    return change
