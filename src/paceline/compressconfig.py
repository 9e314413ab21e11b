"""The keys of `compress:` in job.yaml."""

from __future__ import annotations

from pydantic import Field, model_validator

from paceline.keys import Strict
from paceline.params.feedback import Thinning


class KeepConfig(Strict):
    """keep: share of the numbers that are sent."""

    keep: float = Field(gt=0, le=1, allow_inf_nan=False)


class CompressConfig(Strict):
    """Hard thresholds on what is sent (DCT). gradients: of the dense parameters; activations: partial sums and their
    gradients; refresh: gradients of a worker between two choices of its thresholds."""

    gradients: KeepConfig | None = None
    activations: KeepConfig | None = None
    refresh: int = Field(2000, ge=1)

    @model_validator(mode="after")
    def _something(self) -> CompressConfig:
        if self.gradients is None and self.activations is None:
            raise ValueError(
                "gradients and activations are both left out: name what to compress, or leave out compress"
            )
        return self

    @property
    def thinning(self) -> Thinning | None:
        """Of the dense gradients; None where all of them are kept."""
        if self.gradients is None or self.gradients.keep >= 1:
            return None
        return Thinning(self.gradients.keep, self.refresh)
