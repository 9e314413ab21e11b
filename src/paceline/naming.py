"""Things that a user names as 'package.module:Class'."""

from __future__ import annotations

import importlib
from typing import Any

from paceline.errors import ConfigError, suggest


def look_up(key: str, what: str, name: str, built_in: dict[str, Any]) -> Any:
    """`built_in[name]`, or what 'package.module:Class' names. Raises ConfigError naming the key."""
    if name in built_in:
        return built_in[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = suggest(name, list(built_in))
        raise ConfigError(f"{key}: no {what} is called {name!r}{known} (or package.module:Class)")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {name!r} cannot be imported: {error}") from error
