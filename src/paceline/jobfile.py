"""Reading job.yaml and `key=value` overrides; every mistake is told with its key, its line and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from paceline.config import JobConfig
from paceline.errors import ConfigError, suggest

Config = TypeVar("Config", bound=BaseModel)


def load_config(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """Read job.yaml and apply `key.key=value` overrides. Raises ConfigError, one line for each thing that is wrong."""
    return load(path, overrides or [], JobConfig, "a job is a mapping of keys (data, model, ...)")


def override(config: JobConfig, overrides: list[str]) -> JobConfig:
    """The configuration with `key=value` changes. Raises ConfigError."""
    values = yaml.safe_load(config.to_yaml())
    changed = frozenset(_override(values, override) for override in sorted(overrides, key=_depth))
    return check(values, "command line", overridden=changed)


def load(path: Path, overrides: list[str], kind: type[Config], what: str) -> Config:
    """A YAML file with overrides as a configuration of `kind`; `what` says what the file holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        held = "empty" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{path}: {what}; this file is {held}")
    _check_keys(node, str(path))
    overridden = set()
    # What is above comes first, and a name before its options: the order on the command line does not matter.
    for override in sorted(overrides, key=_depth):
        overridden.add(_override(values, override))
    return check(values, str(path), node, frozenset(overridden), kind)


def _check_keys(node: yaml.Node | None, where: str) -> None:
    """Raise ConfigError for a key that is given twice (YAML would keep the last) or is no text."""
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            _check_keys(element, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{where}, line {line}: {getattr(key, 'value', key)!r} is no name of a key")
        if key.value in seen:
            raise ConfigError(f"{where}, line {line}: the key {key.value!r} is given twice")
        seen.add(key.value)
        _check_keys(value, where)


def check(
    values: dict[str, Any],
    where: str,
    node: yaml.Node | None = None,
    overridden: frozenset[str] = frozenset(),
    kind: type[Config] = JobConfig,  # type: ignore[assignment]
) -> Config:
    """A configuration out of plain values. Raises ConfigError naming every key that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = []
        for problem in error.errors():
            keys = [str(k) for k in problem["loc"]]
            name = ".".join(keys)
            given = any(name.startswith(o) or o.startswith(f"{name}.") for o in overridden)
            line = None if given else _line(node, keys)
            place = "command line" if given else where + (f", line {line}" if line else "")
            told.append(f"{place}: {_explain(name, problem, kind)}")
        raise ConfigError("\n".join(told)) from None


def _explain(name: str, problem: Any, kind: type[BaseModel]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        key = name.rsplit(".", 1)[-1]
        return f"{name}: unknown key{suggest(key, _known(problem['loc'], kind))}"
    if problem["type"] in ("model_type", "dict_type", "model_attributes_type"):
        known = [k for k in _known((*problem["loc"], "?"), kind) if k != "(none)"]
        return f"{name}: {problem['input']!r} is not allowed: write keys under it ({', '.join(known)}), or leave it out"
    if problem["type"] == "missing":
        return f"{name}: this key is needed"
    if problem["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {problem['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _known(loc: tuple[str | int, ...], kind: type[BaseModel]) -> list[str]:
    """The keys allowed where an unknown one was found."""
    model: Any = kind
    for key in loc[:-1]:
        if isinstance(key, int) or model is None:
            continue
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        model = _model_of(field.annotation) if field else None
    if model is None:
        return ["(none)"]
    return [f.alias or n for n, f in model.model_fields.items()]


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_of(inner)
        if found is not None:
            return found
    return None


def _line(node: yaml.Node | None, keys: list[str]) -> int | None:
    """The line (from 1) of a key in the YAML text, or of the nearest key above it."""
    line = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == key), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _depth(override: str) -> tuple[int, bool]:
    key = override.partition("=")[0]
    return key.count("."), not key.endswith(".name")


def _override(values: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, for example batch.local=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # such as `>= 4`, which YAML would want quoted
    target: Any = values
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        index: Any = int(_index(target, parent, key)) if isinstance(target, list) else parent
        below = target[index] if isinstance(target, list) else target.get(index)
        if isinstance(below, str):
            # `pace: gba` stands for `pace: {name: gba}`, `label: click` for `label: {column: click}`
            short = _SHORT_FORMS.get(".".join(p for p in parents[: depth + 1] if not p.isdigit()))
            if short is None:
                raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {below!r}, which has no keys")
            below = target[index] = {short: below}
        elif below is None and isinstance(target, dict):
            below = target[index] = {}
        elif not isinstance(below, (dict, list)):
            raise ConfigError(f"{key}: {'.'.join(parents[: depth + 1])} is {below!r}, which has no keys")
        target = below
    if isinstance(target, list):
        target[int(_index(target, last, key))] = value
    else:
        if last == "name" and target.get("name") not in (None, value):
            target.clear()  # another model, optimizer or pace: the options of the old one do not belong to it
        target[last] = value
    return key


# Where a text stands for a mapping with one key (see `_keyed`).
_SHORT_FORMS = {
    "model": "name",
    "pace": "name",
    "switch.pace": "name",
    "optimizer.sparse": "name",
    "optimizer.dense": "name",
    "pace.weight": "law",
    "switch.pace.weight": "law",
    "features.label": "column",
    "features.numeric": "column",
    "features.multi": "column",
}


def _index(values: list[Any], index: str, key: str) -> str:
    if not index.isdigit() or int(index) >= len(values):
        raise ConfigError(f"{key}: {index!r} is not an element; the list has {len(values)} (from 0)")
    return index
