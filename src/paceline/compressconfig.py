"""The keys of `compress:` in job.yaml."""

from __future__ import annotations

from pydantic import Field, model_validator

from paceline.keys import Strict
from paceline.params.feedback import Thinning


class KeepConfig(Strict):
    """keep: share of the numbers that are sent."""

    keep: float = Field(gt=0, le=1, allow_inf_nan=False)


class CompressConfig(Strict):
    """Hard thresholds on what is sent (DCT). gradients: of the dense parameters; activations: of each sample's partial
    sums, and of their gradients; refresh: gradients of a worker between two choices of its thresholds."""

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

    def check(self, steps: str | None, cluster: bool) -> None:
        """steps: how processes exchange rows in collectives, if they do; cluster: whether there are any. Raises
        ValueError if `activations` would have nothing to compress."""
        if self.activations is None:
            return
        if not cluster:
            raise ValueError(
                "compress.activations: partial sums travel between the processes of a cluster only; add cluster, or"
                " leave activations out"
            )
        if steps not in ("auto", "substitute"):
            way = "push and pull" if steps is None else steps
            raise ValueError(
                f"compress.activations: cluster.exchange is {way}, which sends no partial sums; use exchange: auto or"
                " substitute (without security.tls), or leave activations out"
            )

    @property
    def sums(self) -> float:
        """Share of a sample's partial sums that is sent."""
        return 1.0 if self.activations is None else self.activations.keep

    @property
    def thinning(self) -> Thinning | None:
        """Of the dense gradients; None where all of them are kept."""
        if self.gradients is None or self.gradients.keep >= 1:
            return None
        return Thinning(self.gradients.keep, self.refresh)
