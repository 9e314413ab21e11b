"""The keys of `codistill:` in job.yaml."""

from __future__ import annotations

from pydantic import Field, model_validator

from paceline.keys import Strict


class CodistillConfig(Strict):
    """Groups that train a copy each and learn from the others' predictions. every, burn_in: samples of one group;
    weight: of the distillation loss beside the label's; group: the one to train here (default: all of them, each in a
    process of its own)."""

    groups: int = Field(2, ge=2, le=64)
    every: int = Field(50_000, ge=1)
    burn_in: int = Field(1_000_000, ge=0)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    group: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_of_them(self) -> CodistillConfig:
        if self.group is not None and self.group >= self.groups:
            raise ValueError(f"group {self.group} is none of the {self.groups} groups, which count from 0")
        return self
