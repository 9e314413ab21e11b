"""Why a plan is as it is, in sentences that a person can follow."""

from __future__ import annotations

from paceline.planning.facts import Candidate
from paceline.planning.plan import AGREES, NEAR, Plan, simplicity
from paceline.planning.predict import Prediction

_PARTS = {
    "compute": "computing",
    "transfer": "transfers and latency",
    "servers": "the servers and their queue",
    "waiting": "waiting for the slowest",
    "update": "updates",
}


def reasons(plan: Plan) -> list[str]:
    """A sentence or two for each thing that was chosen."""
    made = [_workers(plan), _local(plan), _pace(plan), _servers(plan), _exchange(plan), _step(plan), _checked(plan)]
    return [text for text in made if text]


def _best(plan: Plan, **wanted: object) -> Prediction | None:
    """The fastest prediction with these properties."""
    for made in plan.ranking:
        values: Candidate = made.candidate
        if all(getattr(values, key) == value for key, value in wanted.items()):
            return made
    return None


def _workers(plan: Plan) -> str:
    chosen = plan.choice
    n, figures = chosen.candidate.workers, plan.figures
    alone = _best(plan, workers=1, global_=chosen.candidate.global_)
    text = f"{n} worker{'s' * (n > 1)}: {chosen.samples_per_s:,.0f} samples/s"
    if alone is not None and n > 1:
        times = chosen.samples_per_s / alone.samples_per_s
        text += f", {times:.1f} times the best with one worker ({times / n:.0%} efficiency)"
    counts = sorted({made.candidate.workers for made in plan.ranking})
    less = max((count for count in counts if count < n), default=None)
    if less is not None and (fewer := _best(plan, workers=less)):
        text += f"; {less} would give {fewer.samples_per_s / chosen.samples_per_s:.0%} of it"
    more = max(counts)
    if more > n and (most := _best(plan, workers=more)):
        text += f", all {more} only {most.samples_per_s / chosen.samples_per_s:.0%}"
    text += "."
    if figures["R_O"] is not None and n > 1:
        text += (
            f" By formula 3.2, with R_O = {figures['R_O']:.1%} of the computing not hidden, {n} are"
            f" {figures['speed_up_by_formula']:.1f} times as fast as one if computing divides evenly"
        )
        if figures["workers_for_80_percent"] is not None:
            text += f", and {max(int(figures['workers_for_80_percent']), 1):,} still have 80 % efficiency"
        text += "."
    return text


def _local(plan: Plan) -> str:
    chosen = plan.choice.candidate
    per_worker = chosen.gradients / chosen.workers
    text = (
        f"Local batch {chosen.local:,}: {chosen.global_:,} in {chosen.gradients:,} gradients, {per_worker:g} a worker"
    )
    rivals = [made for made in plan.ranking if made.candidate.local != chosen.local
              and made.candidate.workers == chosen.workers and made.candidate.global_ == chosen.global_]  # fmt: skip
    if rivals:
        other = rivals[0]
        text += (
            f"; the next best for as many workers, {other.candidate.local:,}, gives"
            f" {other.samples_per_s / plan.choice.samples_per_s:.0%}"
        )
    small, large = plan.data.batches[0], plan.data.batches[-1]
    if small.samples < large.samples:
        text += (
            f". Ids repeat within a batch: {small.distinct / small.samples:.1f} distinct ones a sample in batches of"
            f" {small.samples:,}, {large.distinct / large.samples:.1f} in batches of {large.samples:,}"
        )
    return text + "."


def _pace(plan: Plan) -> str:
    chosen = plan.choice
    name, cost = chosen.candidate.pace.name, plan.figures["barrier_costs"]
    n = chosen.candidate.workers
    other = next((made for made in plan.ranking if made.candidate.pace.name != name), None)
    text = f"Pace {name}"
    if other is not None:
        ratio = chosen.samples_per_s / other.samples_per_s
        rival = other.candidate.pace.name
        text += f": {ratio:.2f} times the predicted speed of the best with {rival}"
        if ratio < 1 + NEAR:
            text += ", and " + _why_this(plan, other)
    if n > 1:
        text += f". The slowest of {n} gradients takes {cost:.2f} times the mean, which a barrier waits for"
    if chosen.late > 0.0005:
        text += f"; {chosen.late:.1%} of the gradients come too late to be applied, and are not counted"
    return text + "."


def _why_this(plan: Plan, other: Prediction) -> str:
    """Why the chosen one is preferred to another that is predicted to be as fast or faster."""
    if simplicity(plan.choice.candidate) < simplicity(other.candidate):
        return "simpler"
    return "faster in the simulator"


def _servers(plan: Plan) -> str:
    chosen = plan.choice.candidate
    if chosen.servers is None or plan.ground == "machine":
        return ""
    figures, count = plan.figures, chosen.servers
    text = f"{count} server{'s' * (count > 1)}: they allow {plan.choice.capacity:,.0f} samples/s"
    if figures["servers_needed"] is not None:
        text += f"; formula 3.3 asks for {figures['servers_needed']} to hide the exchange behind computing"
    if figures["skew"] > 1.1:
        text += f" (the largest shard has {figures['skew']:.2f} times the mean)"
    rivals = [made for made in plan.ranking if made.candidate.servers not in (None, count)
              and made.candidate.workers == chosen.workers and made.candidate.local == chosen.local
              and made.candidate.pace == chosen.pace]  # fmt: skip
    less = next((made for made in rivals if (made.candidate.servers or 0) < count), None)
    if less is not None:
        text += f"; with {less.candidate.servers}, {less.samples_per_s / plan.choice.samples_per_s:.0%} of the speed"
    return text + "."


def _exchange(plan: Plan) -> str:
    chosen, how = plan.choice.candidate, plan.exchange
    if plan.ground == "machine":
        return ""
    if chosen.workers == 1:
        return "Exchange: one worker has nobody to share with."
    if not chosen.collective:
        return (
            f"Exchange by push and pull: {chosen.pace.name} does not wait for everybody, as collectives would;"
            f" {plan.figures['bytes_one_way'] / 1e6:,.2f} MB each way for a gradient."
        )
    text = "Exchange by collectives, since every update needs every gradient"
    if how.key == "rows":
        return text + f": rows move ({how.rows / 1e6:,.2f} MB a gradient and rank; no substitution sends less)."
    return text + (
        f": {how.key} sends {how.sent / 1e6:,.2f} MB a gradient and rank where moving all rows sends"
        f" {how.rows / 1e6:,.2f}. Prediction and simulator reckon with rows."
    )


def _step(plan: Plan) -> str:
    step = dict(plan.choice.step)
    if plan.ground == "machine":  # nothing travels: what the twin has there are updates
        step["update"] += step.pop("transfer") + step.pop("servers")
    total = sum(step.values())
    if not total:
        return ""
    parts = sorted(((seconds / total, _PARTS[name]) for name, seconds in step.items()), reverse=True)
    told = ", ".join(f"{share:.0%} {name}" for share, name in parts if share >= 0.01)
    text = f"A gradient takes {1e3 * total:,.2f} ms: {told}."
    if plan.machine is not None and plan.choice.samples_per_s >= plan.machine.read_rate:
        text += f" Reading is the limit: no more than {plan.machine.read_rate:,.0f} samples/s come out of the files."
    return text


def _checked(plan: Plan) -> str:
    check = plan.checks.get(plan.chosen)
    if check is None:
        return ""
    off = plan.choice.samples_per_s / check.samples_per_s - 1
    text = f"The simulator, on {check.read:,} samples, reaches {check.samples_per_s:,.0f} samples/s: the prediction is"
    text += f" {off:+.1%} off"
    if abs(off) > AGREES:
        text += f", more than {AGREES:.0%}; trust the simulator"
    return text + "."
