"""Row optimizers by name, and one made from the options of a job: for embedding rows and for dense parameters alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from paceline.errors import ConfigError, suggest
from paceline.params.delay import AdagradDelay
from paceline.params.sparse import FTRL, SGD, Adagrad, Adam, RMSProp, RowwiseAdagrad, SparseOptimizer
from paceline.params.swap import FTRLSWAP, AdagradSWAP, AdamSWAP, OptionError, RMSPropSWAP, RowwiseAdagradSWAP

BUILT_IN: dict[str, type[SparseOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adam": Adam,
    "rmsprop": RMSProp,
    "ftrl": FTRL,
    "adagrad_swap": AdagradSWAP,
    "rowwise_adagrad_swap": RowwiseAdagradSWAP,
    "adam_swap": AdamSWAP,
    "rmsprop_swap": RMSPropSWAP,
    "ftrl_swap": FTRLSWAP,
    "adagrad_delay": AdagradDelay,
}


def row_optimizer(key: str, name: str, chosen: type[SparseOptimizer], options: dict[str, Any]) -> SparseOptimizer:
    """`chosen`, which the user calls `name`, with its options. key: where they stand in the job, "optimizer.sparse".

    Options are float32 numbers, or true and false where the default is one of them. Raises ConfigError naming
    `key`.option.
    """
    fields = {f.name: f.default for f in dataclasses.fields(chosen)} if dataclasses.is_dataclass(chosen) else None
    made: dict[str, Any] = {}
    for option, value in options.items():
        if fields is not None and option not in fields:
            raise ConfigError(f"{key}.{option}: {name} has no such option{suggest(option, list(fields))}")
        is_switch = fields is not None and isinstance(fields[option], bool)
        made[option] = (_switch if is_switch else _number)(key, option, value)
    try:
        return chosen(**made)
    except OptionError as error:
        raise ConfigError(f"{key}.{error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {name} cannot take {options}: {error}") from error


def _number(key: str, option: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}.{option}: {value!r} is no number") from None
    if not 0 <= number < 3.4e38 or (option == "lr" and number == 0):
        raise ConfigError(f"{key}.{option}: {value!r} must be a finite number above 0 (a float32)")
    return number


def _switch(key: str, option: str, value: Any) -> bool:
    if value not in (0, 1):
        raise ConfigError(f"{key}.{option}: {value!r} must be true or false")
    return bool(value)
