"""The times of a virtual cluster: how long a gradient, a transfer and a collective take, and when workers die.

Everything is a function of the specification, the worker, the gradient's number and the time at which something starts;
so a simulation goes on from a checkpoint with nothing but its clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from paceline.clusterspec import ClusterSpec

Doubles = npt.NDArray[np.float64]
_BLOCK = 4096
_SPEED, _STRAGGLE, _JITTER, _SPELL, _FAIL = range(5)  # streams of random numbers


def _random(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, number])))


class Speeds:
    """How long workers compute.

    times: float64 [n] per worker that was recorded, seconds of one gradient after another (worker i replays
    times[i % len(times)], over and over), instead of the model in `spec.compute`.
    """

    def __init__(self, spec: ClusterSpec, times: list[Doubles] | None = None) -> None:
        self._spec, self._times = spec, times
        n, compute = spec.workers, spec.compute
        self.factors = _lognormal(_random(spec.seed, _SPEED, 0).standard_normal(n), compute.speed_sigma)
        slow = int(spec.stragglers.share * n + 1e-9) if spec.stragglers.spells is None else 0
        self.slow = np.zeros(n, bool)
        self.slow[_random(spec.seed, _STRAGGLE, 0).permutation(n)[:slow]] = True
        self.factors[self.slow] *= spec.stragglers.factor
        self._fixed, self._sample = compute.fixed_ms / 1e3, compute.per_sample_us / 1e6
        self._jitter: tuple[int, Doubles] = (-1, np.zeros(0))
        self.replayed: dict[int, int] = {}
        self._spells: dict[int, _Spells] = {}

    def done(self, worker: int, gradient: int, samples: int, start: float) -> float:
        """When `worker` has computed `gradient` (of `samples` samples), if it starts at `start` (seconds)."""
        if self._times is not None:
            times = self._times[worker % len(self._times)]
            turn = self.replayed.get(worker, 0)
            self.replayed[worker] = turn + 1
            return start + float(times[turn % len(times)])
        work = (self._fixed + samples * self._sample) * float(self.factors[worker])
        if self._spec.compute.jitter_sigma:
            work *= self._jitter_of(gradient)
        lengths = self._spec.stragglers.spells
        if lengths is None:
            return start + work
        if worker not in self._spells:
            self._spells[worker] = _Spells(lambda: _random(self._spec.seed, _SPELL, worker), lengths)
        return self._spells[worker].done(start, work, self._spec.stragglers.factor)

    def _jitter_of(self, gradient: int) -> float:
        block = gradient // _BLOCK
        if self._jitter[0] != block:
            drawn = _random(self._spec.seed, _JITTER, block).standard_normal(_BLOCK)
            self._jitter = (block, _lognormal(drawn, self._spec.compute.jitter_sigma))
        return float(self._jitter[1][gradient % _BLOCK])


def _lognormal(normal: Doubles, sigma: float) -> Doubles:
    """Lognormal numbers of mean 1."""
    return np.exp(sigma * normal - sigma * sigma / 2)


class _Spells:
    """One worker's slow and fast spells, drawn as time goes on."""

    def __init__(self, random: Callable[[], np.random.Generator], lengths: tuple[float, float]) -> None:
        self._make, self._lengths = random, lengths
        self._begin()

    def _begin(self) -> None:
        slow, fast = self._lengths
        self._random = self._make()
        self._slow = bool(self._random.random() < slow / (slow + fast))
        self._start, self._end = 0.0, self._draw()

    def _draw(self) -> float:
        return float(self._random.exponential(self._lengths[0 if self._slow else 1]))

    def done(self, start: float, work: float, factor: float) -> float:
        """When `work` seconds of a fast spell's work are done."""
        if start < self._start:
            self._begin()  # what was reckoned before was never finished: its worker died over it
        now = start
        while True:
            while self._end <= now:
                self._slow = not self._slow
                self._start = self._end
                self._end += self._draw()
            rate = 1.0 / factor if self._slow else 1.0
            if (self._end - now) * rate >= work:
                return now + work / rate
            work -= (self._end - now) * rate
            now = self._end


class Failures:
    """When each worker dies and comes back: a renewal process that no other event touches."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._lives: dict[int, tuple[float, np.random.Generator]] = {}

    def next(self, worker: int, now: float) -> tuple[float, float] | None:
        """(dies, is back) of the worker's first failure that is not over at `now`; None if it never fails. `now` never
        falls from call to call. "Is back" may be infinite."""
        mtbf, away = self._spec.failures.mtbf_s, self._spec.failures.return_s
        if mtbf is None:
            return None
        dies, random = self._lives.get(worker, (-1.0, None))
        if random is None:
            random = _random(self._spec.seed, _FAIL, worker)
            dies = float(random.exponential(mtbf))
        while (back := dies + (math.inf if away is None else away)) <= now:
            dies = back + float(random.exponential(mtbf))
        self._lives[worker] = (dies, random)
        return dies, back


class Wires:
    """Transfers. Bytes are what the route counts; gbps are 1e9 bits a second."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._latency = spec.network.latency_ms / 1e3
        self._byte = 8 / (spec.network.bandwidth_gbps * 1e9)
        self._served = spec.servers.ms_per_mb / 1e3 / 1e6 / spec.servers.count
        self._ring_latency = spec.allreduce.latency_ms / 1e3
        self._ring_byte = 8 / (spec.allreduce.bandwidth_gbps * 1e9)
        self._free = 0.0  # when the servers have worked off what was asked of them

    def rest(self, now: float) -> None:
        """Nothing is on the way at `now`."""
        self._free = now

    def asked(self, now: float) -> float:
        """When a request that is sent at `now` reaches the servers."""
        return now + self._latency

    def answered(self, now: float, size: int) -> float:
        """When a pull of `size` bytes whose request reached the servers at `now` has arrived: their queue, and back."""
        return self.served(now, size) + size * self._byte + self._latency

    def sent(self, now: float, size: int) -> float:
        """When a push of `size` bytes has reached the servers."""
        return now + size * self._byte + self._latency

    def served(self, now: float, size: int) -> float:
        """When the servers are through with `size` bytes that reached them at `now`; `now` never falls."""
        work = size * self._served
        if not work:
            return now
        self._free = max(self._free, now) + work
        return self._free

    def exchanged(self, now: float, size: int) -> float:
        """When rows (or their gradients) of `size` bytes have come by all-to-all."""
        return now + self._ring_latency + size * self._ring_byte

    def reduced(self, now: float, size: int, workers: int) -> float:
        """When a ring has summed `size` bytes over all workers: each sends 2 (n - 1) / n of them, all at once."""
        if workers < 2:
            return now
        return now + self._ring_latency + 2 * (workers - 1) / workers * size * self._ring_byte

    def gathered(self, now: float, whole: int, thin: float, workers: int) -> float:
        """The same of gradients that are mostly zeros, which take `thin` bytes in all, places included: a ring brings
        each worker those of all others, (n - 1) / n of them, and each adds them up (our note on DCT, section 4). With
        many workers that is more than to sum all `whole` bytes of a gradient, zeros included: whichever is quicker."""
        if workers < 2:
            return now
        sparse = now + self._ring_latency + (workers - 1) / workers * thin * self._ring_byte
        return min(sparse, self.reduced(now, whole, workers))
