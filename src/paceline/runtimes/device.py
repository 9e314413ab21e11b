"""A model on another device: rows and dense parameters live in host memory, and a copy of the model computes there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from paceline.errors import ConfigError
from paceline.models.base import Model
from paceline.models.normalise import flatten_statistics
from paceline.models.operators import Totals
from paceline.params.dense import flatten


def find_device(name: str, reserved: bool) -> torch.device:
    """The device called `name`: cpu, cuda, cuda:1, ...; auto: a GPU where one is `reserved`, else the CPU.

    Raises ConfigError naming `device` if torch does not know it or this machine has none.
    """
    if name == "auto":
        name = "cuda" if reserved else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).split("\n")[0].rstrip(".")
        advice = "cluster.resources.gpus: 0, or device: cpu" if reserved else "device: cpu"
        raise ConfigError(f"device: {name!r} cannot be used on this machine ({why}); set {advice}") from None
    if device.type == "meta":
        raise ConfigError("device: 'meta' computes nothing; set device: cpu")
    return device


@final
class DeviceCopy:
    """A copy of `model` on `device`. Gradients by its `parameters` are gradients by the model's, on the device."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.device = device
        self.model = copy.deepcopy(model).to(device)
        self.parameters = list(self.model.parameters())
        self._flat, self._statistics = flatten(self.model), flatten_statistics(self.model)

    def take(self, flat: Tensor, statistics: Tensor, training: bool) -> None:
        """Copy the dense parameters and the statistics over."""
        with torch.no_grad():
            self._flat.copy_(flat)
            self._statistics.copy_(statistics)
        self.model.train(training)

    def rows(self, rows: Mapping[str, Tensor | Totals]) -> dict[str, Tensor | Totals]:
        """rows[part] there; gradients flow back to those here. Sums of partials are there already."""
        return {name: v if isinstance(v, Totals) else v.to(self.device) for name, v in rows.items()}

    def return_statistics(self, into: Tensor) -> None:
        """What computing has made of the statistics."""
        with torch.no_grad():
            into.copy_(self._statistics)
