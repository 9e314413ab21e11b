"""Models by name: the built-in ones, and a user's own as 'package.module:Class'."""

from __future__ import annotations

import inspect
from typing import Any

from paceline.errors import ConfigError, suggest
from paceline.models.base import Inputs, Model
from paceline.models.classic import FM, LR, DeepFM, WideDeep
from paceline.models.dcn import DCNv2
from paceline.models.dlrm import DLRM
from paceline.models.mrmn import LRML, MRMN
from paceline.models.ranking import CML, RankingModel
from paceline.naming import look_up

MODELS: dict[str, type[Model]] = {
    "lr": LR,
    "fm": FM,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn_v2": DCNv2,
    "dlrm": DLRM,
}
RANKING: dict[str, type[RankingModel]] = {"mrmn": MRMN, "cml": CML, "lrml": LRML}


def model_class(name: str) -> type[Model]:
    """The class of a built-in name or of 'package.module:Class'. Raises ConfigError naming the key `model.name`."""
    found = look_up("model.name", "model", name, {**MODELS, **RANKING})
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ConfigError(f"model.name: {name!r} is not a subclass of paceline.Model")
    chosen: type[Model] = found
    return chosen


def build_model(name: str, options: dict[str, Any], inputs: Inputs) -> Model:
    """The model with its options. Raises ConfigError for an option that it does not have or cannot take."""
    chosen = model_class(name)
    if issubclass(chosen, RankingModel) != bool(inputs.types):
        how = "predicts clicks; with interactions" if inputs.types else "ranks items; without interactions"
        others = ", ".join(RANKING if inputs.types else MODELS)
        raise ConfigError(f"model.name: {name} {how} use one of {others} (or package.module:Class)")
    known = {name: p.default for name, p in inspect.signature(chosen).parameters.items() if name != "inputs"}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"model.{key}: {name} has no such option{suggest(key, list(known))}")
        _check_option(key, value, known[key])
    try:
        return chosen(inputs, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {name} cannot be built with {options}: {error}") from error


def _check_option(key: str, value: Any, default: Any) -> None:
    """An option has to be of its default's kind. Raises ConfigError."""

    def is_whole(number: Any, least: int) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and least <= number < 2**31

    if default is inspect.Parameter.empty:
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"model.{key}: {value!r} must be true or false")
        return
    if isinstance(default, int):
        least = 0 if default == 0 or key == "rank" else 1
        if not is_whole(value, least):
            raise ConfigError(f"model.{key}: {value!r} must be a whole number of at least {least}")
    elif isinstance(default, float):
        if not _is_number(value):
            raise ConfigError(f"model.{key}: {value!r} must be a finite number of at least 0")
    elif default == ():
        if not (isinstance(value, (tuple, list)) and value and all(_is_number(v) for v in value)):
            raise ConfigError(f"model.{key}: {value!r} must be a list of numbers of at least 0, such as [0.5, 1]")
    elif isinstance(default, (tuple, list)) and not (
        isinstance(value, (tuple, list)) and value and all(is_whole(number, 1) for number in value)
    ):
        raise ConfigError(f"model.{key}: {value!r} must be a list of whole numbers above 0, such as [256, 128]")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e6
