"""What the models of configuration files have in common."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


def keyed(key: str) -> BeforeValidator:
    """Lets `name` stand for `{key: name}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)
