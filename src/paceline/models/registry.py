"""Models by name: the built-in ones, and a user's own as 'package.module:Class'."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from paceline.errors import ConfigError, suggest
from paceline.models.base import Inputs, Model
from paceline.models.classic import FM, LR, DeepFM, WideDeep
from paceline.models.dcn import DCNv2
from paceline.models.dlrm import DLRM

MODELS: dict[str, type[Model]] = {
    "lr": LR,
    "fm": FM,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn_v2": DCNv2,
    "dlrm": DLRM,
}


def model_class(name: str) -> type[Model]:
    """The class of a built-in name or of 'package.module:Class'. Raises ConfigError naming the key `model.name`."""
    if name in MODELS:
        return MODELS[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(f"model.name: no model is called {name!r}{suggest(name, list(MODELS))} (or module:Class)")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.name: {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ConfigError(f"model.name: {name!r} is not a subclass of paceline.Model")
    return found


def build_model(name: str, options: dict[str, Any], inputs: Inputs) -> Model:
    """The model with its options. Raises ConfigError for an option that it does not have or cannot take."""
    chosen = model_class(name)
    known = [p for p in inspect.signature(chosen).parameters if p != "inputs"]
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"model.{key}: {name} has no such option{suggest(key, known)}")
        numbers = value if isinstance(value, list) else [value]
        if key in ("dim", "hidden", "bottom") and not (numbers and all(isinstance(n, int) and n > 0 for n in numbers)):
            raise ConfigError(f"model.{key}: {value!r} must be made of whole numbers above 0")
    try:
        return chosen(inputs, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {name} cannot be built with {options}: {error}") from error
