"""A synthetic click log whose truth is known: features, labels, and the probability each label was drawn with.

The truth is a factorisation machine over the ids plus smooth effects of the numbers:

    logit = bias(day) + g1 * sum of linear weights + g2 * sum over pairs <latent, latent> + g3 * effects of the numbers

An id's weights are a hash of (seed, field, id), so any number of ids costs no memory. Every day the weights turn by
`drift` radians between two independent vectors, and in a few fields some ids give way to new ones, so a model frozen on
day 0 gets worse while one that keeps training does not have to. (After 2 pi / drift days the truth comes round again.)
Ids follow a power law; an id's weights shrink with its rank, since what is hardly ever seen cannot be learned. The
three gains are set so that each part has its share of the variance and the best possible AUC is about the same for any
seed and any number of rows.

Row i of day d is a function of the spec (without `rows`, `chunk_rows`, `compression`), d and i alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from paceline.errors import UserError
from paceline.kernels import synth as kernel

Layout = Literal["criteo", "parquet"]
Compression = Literal["gz", "zst", "none"]

MAX_CHUNK_ROWS = 1_000_000
MAX_VOCABULARY = 1 << 30

# What each field looks like, taken over from the shape of the Criteo display log and repeated for further fields.
_CARDINALITY = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
_BAG_CARDINALITY = (4000, 60000)
_CATEGORICAL_MISSING = {2: 0.034, 3: 0.034, 5: 0.12, 11: 0.034, 15: 0.034, 18: 0.44, 19: 0.44, 21: 0.76, 24: 0.44}
_RENEWING, _RENEW_DAYS, _USER = (9, 12, 20), 20, 23  # fields whose ids come and go, days that one stays, user field
_NUMERIC = (  # mean and spread of the logarithm, share missing
    (0.5, 1.0, 0.45), (1.5, 1.8, 0.0), (2.0, 1.5, 0.21), (1.8, 1.0, 0.21), (7.5, 2.2, 0.03), (4.0, 1.6, 0.22),
    (2.0, 1.3, 0.04), (2.3, 1.0, 0.0), (4.0, 1.3, 0.04), (0.2, 0.5, 0.45), (0.8, 0.9, 0.04), (0.1, 0.6, 0.76),
    (2.0, 1.0, 0.21),
)  # fmt: skip

_SHARES = (0.45, 0.40, 0.15)  # of the logit's variance: linear, second-order, numbers
_LOGIT_STD = 1.35  # puts the best AUC at about 0.80
_SAMPLE_DAYS, _SAMPLE_ROWS = 8, 8192


@dataclass(frozen=True, slots=True)
class SynthSpec:
    """What to generate. Two equal specs give equal logs.

    Attributes:
        rows: of the whole log; the days share them evenly.
        days: number of days, one file each.
        seed: of truth and draws, 0 .. 2^63-1.
        layout: `criteo` is text with a label, 13 numbers and 26 categoricals; `parquet` has any number of fields.
        compression: of the text: gz, zst or none. A parquet file compresses its own pages.
        drift: radians by which the truth turns from one day to the next.
        click_rate: share of clicks, met within sampling error on every day.
        numeric, categorical, multi: number of fields; the criteo layout has 13, 26 and (set here) 0.
        vocabulary: distinct ids that all fields together can show over all days.
        alpha: exponent of the power law that the ids follow.
        chunk_rows: rows that are in memory at a time, and rows of a parquet row group. Changes no value.

    Raises:
        UserError: a value that cannot be generated.
    """

    rows: int
    days: int
    seed: int = 0
    layout: Layout = "criteo"
    compression: Compression = "gz"
    drift: float = 0.15
    click_rate: float = 0.25
    numeric: int = 13
    categorical: int = 26
    multi: int = 2
    vocabulary: int = 2_000_000
    alpha: float = 1.1
    chunk_rows: int = 250_000

    def __post_init__(self) -> None:
        for name, kinds in (("layout", get_args(Layout)), ("compression", get_args(Compression))):
            if getattr(self, name) not in kinds:
                raise UserError(f"{name}: {getattr(self, name)!r} is not known; use one of {', '.join(kinds)}")
        if self.layout == "criteo":
            _in_range("numeric", self.numeric, 13, 13, "the criteo layout has 13; use layout='parquet' for others")
            _in_range("categorical", self.categorical, 26, 26, "the criteo layout has 26; use layout='parquet'")
            object.__setattr__(self, "multi", 0)
        _in_range("days", self.days, 1, 100_000, "a log has at least one day")
        _in_range("rows", self.rows, self.days, 1 << 40, "every day needs a row: ask for more rows or fewer days")
        _in_range("seed", self.seed, 0, (1 << 63) - 1, "choose a seed in that range")
        _in_range("drift", self.drift, -math.pi, math.pi, "it is an angle per day in radians; 0 stands still")
        _in_range("click_rate", self.click_rate, 0.001, 0.999, "it is the share of rows with a click")
        for name, least, most in (("numeric", 0, 1024), ("categorical", 1, 1024), ("multi", 0, 64)):
            _in_range(name, getattr(self, name), least, most, "choose a number of fields in that range")
        least = 16 * (self.categorical + self.multi)
        _in_range("vocabulary", self.vocabulary, least, MAX_VOCABULARY, "each field needs about 16 ids on average")
        _in_range("alpha", self.alpha, 0.0, 4.0, "0 is uniform, real logs are near 1.1")
        _in_range("chunk_rows", self.chunk_rows, 1, MAX_CHUNK_ROWS, "a chunk is held in memory")

    def rows_of(self, day: int) -> int:
        """Rows of a day; what does not divide evenly goes to the first days."""
        return self.rows // self.days + (day < self.rows % self.days)

    @property
    def user_field(self) -> int:
        """The categorical field, counted from 0, that the parquet layout repeats as its `user` column."""
        return min(_USER, self.categorical - 1)


def _in_range(name: str, value: float, low: float, high: float, way_out: str) -> None:
    if not low <= value <= high:  # also catches NaN
        raise UserError(f"{name}: {value} is not within {low:.6g} .. {high:.6g}; {way_out}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one day.

    Attributes:
        day, start: number of the day and of the chunk's first row in it, both from 0.
        label: int8 [n].
        numeric, numeric_missing: int32 and bool [n, numeric]; 0 where missing.
        categorical, categorical_missing: int64 ids and bool [n, categorical]; 0 where missing.
        probability: float64 [n], the one that the label was drawn with.
        bags: per multi-hot field (offsets int32 [n + 1], ids int64 [offsets[n]]).

    The two-dimensional arrays are stored field by field: a column is contiguous, a row is not.
    """

    day: int
    start: int
    label: NDArray[np.int8]
    numeric: NDArray[np.int32]
    numeric_missing: NDArray[np.bool_]
    categorical: NDArray[np.int64]
    categorical_missing: NDArray[np.bool_]
    probability: NDArray[np.float64]
    bags: tuple[tuple[NDArray[np.int32], NDArray[np.int64]], ...]

    def __len__(self) -> int:
        return int(self.label.shape[0])


def cardinalities(spec: SynthSpec) -> list[int]:
    """Distinct ids per field over the whole log, categoricals first; they add up to `vocabulary`.

    Criteo's cardinalities to one common power: a field of 10 values keeps about 10 while the large ones take the rest.
    """
    shape = [_CARDINALITY[f % len(_CARDINALITY)] for f in range(spec.categorical)]
    shape += [_BAG_CARDINALITY[m % len(_BAG_CARDINALITY)] for m in range(spec.multi)]

    def sized(power: float) -> list[int]:
        return [max(3, round(c**power)) for c in shape]

    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(sized(middle)) <= spec.vocabulary else (low, middle)
    sizes = sized(low)
    sizes[max(range(len(sizes)), key=sizes.__getitem__)] += spec.vocabulary - sum(sizes)
    return sizes


class Truth:
    """The planted truth of a spec. Build with `truth_of`, which keeps the last few. Safe to use from many threads."""

    def __init__(self, spec: SynthSpec) -> None:
        self.spec = spec
        self._key = _draw(spec.seed, 0x5EED)
        self._ids, self._laws = self._field_tables()
        self._guide = np.empty((self._laws.shape[0], kernel.GUIDE + 1), np.int32)
        kernel.guide_ranks(self._ids, self._laws, self._guide)
        self._numbers = self._number_table()
        self._gains = self._calibrated_gains()
        self._bias: dict[int, float] = {}

    def chunk(self, day: int, start: int, n: int) -> Chunk:
        """Rows start .. start + n of a day."""
        chunk, parts = self._fill(day, start, n, truth_day=day)
        self._draw(chunk, parts, self.bias(day))
        return chunk

    def probability(self, chunk: Chunk, truth_day: int) -> NDArray[np.float64]:
        """[n]: what the truth of another day says of a chunk's rows. The best that a model frozen then could do."""
        again, parts = self._fill(chunk.day, chunk.start, len(chunk), truth_day)
        self._draw(again, parts, self.bias(truth_day))
        return again.probability

    def bias(self, day: int) -> float:
        """The bias that brings the day's click rate to the spec's, found by bisection on a fixed sample."""
        if day not in self._bias:
            sample, parts = self._fill(day, 0, _SAMPLE_ROWS, day)
            low, high = -30.0, 30.0
            for _ in range(40):
                middle = (low + high) / 2
                self._draw(sample, parts, middle)
                low, high = (middle, high) if float(sample.probability.mean()) < self.spec.click_rate else (low, middle)
            self._bias[day] = (low + high) / 2
        return self._bias[day]

    def _draw(self, chunk: Chunk, parts: NDArray[np.float64], bias: float) -> None:
        at = chunk.start
        kernel.draw_clicks(self._key, chunk.day, at, parts, self._gains, bias, chunk.probability, chunk.label)

    def _fill(self, day: int, start: int, n: int, truth_day: int) -> tuple[Chunk, NDArray[np.float64]]:
        spec, angle = self.spec, self.spec.drift * truth_day
        numeric, numeric_missing = np.empty((spec.numeric, n), np.int32), np.empty((spec.numeric, n), np.bool_)
        categorical = np.empty((spec.categorical, n), np.int64)
        categorical_missing = np.empty((spec.categorical, n), np.bool_)
        bag_values = np.empty((spec.multi, n * kernel.MAX_BAG), np.int64)  # only the pages that are filled cost memory
        bag_offsets = np.empty((spec.multi, n + 1), np.int32)
        parts = np.empty((3, n))
        kernel.fill_rows(
            self._key, day, start, math.cos(angle), math.sin(angle), self._numbers, self._ids, self._laws, self._guide,
            numeric, numeric_missing, categorical, categorical_missing, bag_values, bag_offsets, parts,
        )  # fmt: skip
        bags = tuple((bag_offsets[m], bag_values[m, : bag_offsets[m, n]]) for m in range(spec.multi))
        chunk = Chunk(
            day, start, np.empty(n, np.int8), numeric.T, numeric_missing.T, categorical.T, categorical_missing.T,
            np.empty(n), bags,
        )  # fmt: skip
        return chunk, parts

    def _field_tables(self) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        spec = self.spec
        sizes = cardinalities(spec)
        wide = sorted(range(len(sizes)), key=lambda f: -sizes[f])[: (len(sizes) + 1) // 2]
        ids, laws = np.zeros((len(sizes), kernel.ID_WIDTH), np.uint64), np.zeros((len(sizes), kernel.LAW_WIDTH))
        for f, size in enumerate(sizes):
            key = _draw(self._key, (1 << 32) + f)
            kind = f % len(_CARDINALITY)
            renews = f < spec.categorical and kind in _RENEWING and size > 2 * spec.days
            # Over the log such a field shows window * (1 + (days - 1) / life) ids; that must stay within its size.
            window = int((size - spec.days) / (1 + (spec.days - 1) / _RENEW_DAYS)) if renews else size
            encoding = kernel.HEX32 if spec.layout == "criteo" else kernel.WIDE63 if f in wide else kernel.PLAIN
            ids[f] = (window, _RENEW_DAYS if renews else 0, encoding, key)
            # Next to 1 the power law's formula is 0/0, and the logarithm is what it tends to.
            flat = abs(spec.alpha - 1) < 1e-6
            laws[f, kernel.LAW_SPAN] = math.log(window + 1) if flat else (window + 1) ** (1 - spec.alpha) - 1
            laws[f, kernel.LAW_INVERSE] = 0.0 if flat else 1 / (1 - spec.alpha)
            if f < spec.categorical and f != spec.user_field:
                laws[f, kernel.LAW_MISSING] = _CATEGORICAL_MISSING.get(kind, 0.0)
            # Fields matter unequally: a few carry most of the interactions, or none would be strong enough to learn.
            u, v = (float(kernel.unit(_draw(key, (1 << 40) + k))) for k in range(2))
            laws[f, kernel.LAW_LINEAR] = 0.4 + 1.2 * u
            laws[f, kernel.LAW_LATENT] = 0.05 + 1.4 * v**4
        return ids, laws

    def _number_table(self) -> NDArray[np.float64]:
        table = np.zeros((self.spec.numeric, kernel.NUM_WIDTH))
        for f in range(self.spec.numeric):
            coefficients = [2 * float(kernel.unit(_draw(self._key, (1 << 33) + 4 * f + k))) - 1 for k in range(4)]
            table[f] = (*_NUMERIC[f % len(_NUMERIC)], *coefficients)
        return table

    def _calibrated_gains(self) -> NDArray[np.float64]:
        """[3]: the factors that give each part its share of the variance within a day, over a sample of the days."""
        days = sorted({(self.spec.days - 1) * k // (_SAMPLE_DAYS - 1) for k in range(_SAMPLE_DAYS)})
        variance = np.mean([self._fill(d, 0, _SAMPLE_ROWS, d)[1].var(axis=1) for d in days], axis=0)
        shares = np.where(variance > 1e-12, _SHARES, 0.0)  # one field has no pairs, and there may be no numbers
        gains: NDArray[np.float64] = _LOGIT_STD * np.sqrt(shares / shares.sum() / np.maximum(variance, 1e-12))
        return gains


def _draw(key: int | np.uint64, stream: int) -> np.uint64:
    return np.uint64(kernel.draw(np.uint64(key), np.uint64(stream)))


_kept = lru_cache(maxsize=8)(Truth)


def truth_of(spec: SynthSpec) -> Truth:
    """The truth of a spec; specs that differ only in how the log is cut and packed share it."""
    return _kept(replace(spec, rows=spec.days, compression="gz", chunk_rows=MAX_CHUNK_ROWS))


def chunks(spec: SynthSpec) -> Iterator[Chunk]:
    """The whole log in memory-sized pieces: day by day, at most `chunk_rows` rows each, never across a day's end."""
    truth = truth_of(spec)
    for day, start, n in chunk_plan(spec):
        yield truth.chunk(day, start, n)


def chunk_plan(spec: SynthSpec) -> Iterator[tuple[int, int, int]]:
    """(day, first row, rows) of every chunk, in order."""
    for day in range(spec.days):
        for start in range(0, spec.rows_of(day), spec.chunk_rows):
            yield day, start, min(spec.chunk_rows, spec.rows_of(day) - start)
