"""The initial weights of a run: the choice, the file, and loading them into the model."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

from opendetr.categories import Categories
from opendetr.config import ConfigError, setting_names, some_of
from opendetr.models import Detector
from opendetr.presets import (
    Preset,
    get_preset,
    list_models,
    name_without_masks,
    preset_from_dict,
    published_weights,
    shipped_weights,
    weights_at,
    weights_origin,
)
from opendetr.weights import (
    ModelCard,
    WeightsError,
    download,
    fitting_part,
    in_our_layout,
    is_pretraining,
    is_remote,
    load_weights,
    naming,
    read_card,
    read_state,
    require_classes,
    transfer,
    transfer_pretrained,
)

NOTHING, IMAGENET, PUBLISHED = "none", "imagenet", "published"


def weights_choice(name: str, weights: str | Path | None) -> str:
    """The weights of a run as "none", "imagenet", "published", a catalogue name, an address or a path.

    None selects published weights if there are any, else ImageNet weights if the backbone has any, else none.
    """
    if weights is None:
        other = IMAGENET if get_preset(name).model.backbone.imagenet_url() else NOTHING
        has_weights = weights_origin(name) or weights_origin(name_without_masks(name))
        return PUBLISHED if has_weights else other
    return str(weights)


def is_path(choice: str) -> bool:
    """Whether the weights of a run are a local file or folder."""
    return not (choice in (NOTHING, IMAGENET, PUBLISHED, *list_models()) or is_remote(choice))


def starting_point(name: str, choice: str) -> str | Path:
    """The origin of the weights: "none", "imagenet" or the path of a file, which is downloaded if necessary."""
    if choice in (NOTHING, IMAGENET):
        return choice
    if choice in list_models():
        return _published(choice)
    return _published(name) if choice == PUBLISHED else weights_at(choice)


def _published(name: str) -> Path:
    """The weights of a model, or those of its detector: a model with a mask head can start from them."""
    path = _or_choose(
        lambda: published_weights(name) or published_weights(name_without_masks(name)), get_preset(name), PUBLISHED
    )
    if path is None:
        raise WeightsError(f"{name}: has no published weights; {_other_choices(get_preset(name), PUBLISHED)}")
    return path


def _or_choose(fetch: Callable[[], Path | None], preset: Preset, refused: str) -> Path | None:
    """Call `fetch`. The message of its error also names the choices other than `refused`."""
    try:
        return fetch()
    except WeightsError as error:
        raise WeightsError(f"{error}; or {_other_choices(preset, refused)}") from None


def _other_choices(preset: Preset, refused: str) -> str:
    """Advice to choose initial weights other than `refused`, of those that exist for this model."""
    choices = [NOTHING]
    if preset.model.backbone.imagenet_url():
        choices.append(IMAGENET)
    if weights_origin(preset.name) or weights_origin(preset.detector_name):
        choices.append(PUBLISHED)
    usable = ", ".join(choice for choice in choices if choice != refused)
    return f"choose other weights: {usable}, or a run folder or file of weights"


def load_start(model: Detector, origin: str | Path, preset: Preset, categories: Categories) -> str:
    """Load the initial weights into `model`. Returns one line about them.

    Raises:
        WeightsError: the weights cannot be downloaded or do not fit the model.
        ConfigError: a frozen detector would have to learn new classes.
    """
    count = f"{preset.name}, {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters"
    if origin == NOTHING:
        return f"{count}, all of them random"
    if isinstance(origin, Path):
        shipped = origin in (shipped_weights(preset.name), shipped_weights(preset.detector_name))
        source = "the weights of the package" if shipped else origin
        report = load_transferred(model, origin, preset, categories)
        return f"{count}, from {source}" + (f"; {report}" if report else "")
    backbone = preset.model.backbone
    url = backbone.imagenet_url()
    if url is None:
        raise WeightsError(
            f"{preset.name}: there are no ImageNet weights for its {backbone.describe()}; "
            f"{_other_choices(preset, IMAGENET)}"
        )
    path = _or_choose(lambda: download(url), preset, IMAGENET)
    assert path is not None
    own = model.backbone.body.state_dict().keys()  # without the classifier of the file
    load_weights(model.backbone.body, {name: value for name, value in read_state(path).items() if name in own})
    return f"{count}, the backbone's from {path.name}"


def predicts_classes(origin: str | Path, preset: Preset, categories: Categories) -> bool:
    """Whether the initial weights predict a class of the dataset without training."""
    if not isinstance(origin, Path) or (is_pretraining(state := read_state(origin)) and preset.uses_annotations):
        return False
    if preset.num_classes(categories) != len(categories):  # the outputs of the class head do not depend on the dataset
        return True
    card = read_card(origin)
    known = card.categories if card else preset.categories_of(state)
    return not set(known.names).isdisjoint(categories.names)


def load_transferred(model: Detector, path: Path, preset: Preset, categories: Categories) -> str:
    """Load the weights of a detector, with classes matched by name. Returns one line, or ""."""
    card = read_card(path)
    trained = None if card is None else preset_from_dict(card.config)
    try:
        return _load_transferred(model, path, card, trained, preset, categories)
    except WeightsError:
        changed = [] if trained is None else _changed_architecture(trained, preset)
        if not changed:
            raise
        raise WeightsError(
            f"{path}: the weights were trained with {some_of(changed)}; keep these settings, or choose other weights"
        ) from None


def _changed_architecture(trained: Preset, preset: Preset) -> list[str]:
    """The settings of the trained model that a preset changes, as "model.questions=scenes"; queries may differ."""
    of_trained, own = ({name: attrgetter(name)(each) for name in setting_names(each)} for each in (trained, preset))
    return [
        f"{name}={value}"
        for name, value in of_trained.items()
        if name.startswith("model.") and name in own and own[name] != value and name != "model.num_queries"
    ]


def _load_transferred(
    model: Detector, path: Path, card: ModelCard | None, trained: Preset | None, preset: Preset, categories: Categories
) -> str:
    state = read_state(path)
    if is_pretraining(state) and preset.uses_annotations:
        if preset.freeze_detector:
            raise ConfigError(f"{path}: pre-training has no detector to freeze; train one on this data first")
        with naming(path):
            random_parts = () if trained is None else trained.untransferred
            return str(transfer_pretrained(model, state, categories, random_parts=random_parts))
    known = card.categories if card else preset.categories_of(state)
    with naming(path):
        part = in_our_layout(model, fitting_part(model, state))
    require_classes(path, model, part, len(known), num_others=model.num_logits - len(categories))
    with naming(path):
        report = transfer(model, state, known, categories)
    if report.new and preset.freeze_detector:
        isthing = dict(zip(categories.names, categories.isthing, strict=True))
        fix = (
            "train it on this data first"
            if any(isthing[name] for name in report.new)
            else "set data.masks to instances, or train the detector with data.masks set to panoptic first"
        )
        raise ConfigError(f"{path}: a frozen detector cannot learn {', '.join(report.new[:5])}; {fix}")
    return str(report)
