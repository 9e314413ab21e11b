"""Moving rows: out of the table, into the shape that models take, and gradients back the same way."""

from __future__ import annotations

import numpy as np

from paceline.kernels.halves import narrow_nearest, nearest, rounded, stored, widen
from paceline.kernels.hashing import start_row
from paceline.kernels.jit import kernel
from paceline.kernels.pointers import (
    AHEAD,
    address_of,
    floats,
    floats_at,
    halves,
    ints_at,
    prefetch,
    prefetch_bytes,
    words,
)

GLOBAL_MEAN, PER_ID_MEAN, SUM = 0, 1, 2
ON_GRADIENT, ON_STEP = 0, 1


@kernel
def start_rows(records, width, clocks, ids_at, ids, first, seed, bounds, slots, spare):
    """Fill the rows of new ids: ids[i] at row first + i.

    records: addresses of blocks of `width` = weights + slots float32 (fewer where weights are bfloat16; spare is then
    float32 [at least weights] to work in, otherwise empty); clocks: addresses of int64 (last update, count); ids_at:
    addresses of int64 (id).
    """
    weights = width - slots.shape[0]
    for i in range(ids.shape[0]):
        record = floats_at(records, first + i, width)
        if spare.shape[0] > 0:
            start_row(spare, seed, ids[i], bounds)
            narrow_nearest(spare.ctypes.data, address_of(records, first + i, width * 4), bounds.shape[0])
        else:
            start_row(record, seed, ids[i], bounds)
        for j in range(slots.shape[0]):
            record[weights + j] = slots[j]
        clock = ints_at(clocks, first + i, 2)
        clock[0] = 0
        clock[1] = 0
        ints_at(ids_at, first + i, 1)[0] = ids[i]


@kernel
def pull(records, width, clocks, rows, ids, seed, bounds, half, out, counts):
    """out float32 [n, weights] = the weights of rows[i]; where rows[i] < 0, what a new row of ids[i] starts from.
    counts int32 [n] = the updates that the row has had. half: the weights are bfloat16.
    """
    weights, n = bounds.shape[0], rows.shape[0]
    size = weights * (2 if half else 4)
    outs = out.ctypes.data
    for i in range(n):
        if i + AHEAD < n and rows[i + AHEAD] >= 0:
            prefetch_bytes(address_of(records, rows[i + AHEAD], width * 4), size)
            prefetch(address_of(clocks, rows[i + AHEAD], 16))
        if rows[i] < 0:
            start_row(out[i], seed, ids[i], bounds)
            counts[i] = 0
            if half:
                fresh = words(outs + i * weights * 4, weights)
                for j in range(weights):
                    fresh[j] = np.uint32(rounded(fresh[j], nearest(fresh[j]))) << np.uint32(16)
        elif half:
            counts[i] = ints_at(clocks, rows[i], 2)[1]
            widen(address_of(records, rows[i], width * 4), outs + i * weights * 4, weights)
        else:
            counts[i] = ints_at(clocks, rows[i], 2)[1]
            record, target = floats_at(records, rows[i], width), floats(outs + i * weights * 4, weights)
            for j in range(weights):
                target[j] = record[j]


@kernel
def changed_rows(clocks, since, first, stop, out):
    """out int64 [>= stop]: the numbers of rows below `first` whose last update is newer than version `since`, then of
    all from `first` up to `stop`, in order. Returns how many."""
    count = 0
    for row in range(first):
        if ints_at(clocks, row, 2)[0] > since:
            out[count] = row
            count += 1
    for row in range(first, stop):
        out[count] = row
        count += 1
    return count


@kernel
def copy_rows(records, width, clocks, ids_at, rows, half, ids, weights, slots, out_clocks):
    """Copy the rows numbered rows int64 [n] out: ids int64 [n], weights float32 [n, w], slots float32 [n, s] and clocks
    int64 [n, 2]. half: the weights are bfloat16."""
    w = weights.shape[1]
    begin = stored(w) if half else w
    for i in range(rows.shape[0]):
        record, clock = floats_at(records, rows[i], width), ints_at(clocks, rows[i], 2)
        ids[i] = ints_at(ids_at, rows[i], 1)[0]
        if half:
            widen(address_of(records, rows[i], width * 4), weights.ctypes.data + i * w * 4, w)
        else:
            for j in range(w):
                weights[i, j] = record[j]
        for j in range(slots.shape[1]):
            slots[i, j] = record[begin + j]
        out_clocks[i, 0], out_clocks[i, 1] = clock[0], clock[1]


@kernel
def pull_sums(records, width, rows, sums):
    """sums float32 [n, weights] = the last slots of rows[i]; zeros where rows[i] < 0."""
    first = width - sums.shape[1]
    for i in range(rows.shape[0]):
        for j in range(sums.shape[1]):
            sums[i, j] = np.float32(0.0)
        if rows[i] >= 0:
            record = floats_at(records, rows[i], width)
            for j in range(sums.shape[1]):
                sums[i, j] = record[first + j]


@kernel
def pool_singles(rows, inverse, fields, begin, out):
    """out[b, f] = rows[inverse[b * fields + f], begin : begin + width]; out float32 [B, all fields, width]. All are
    contiguous."""
    width, stride = out.shape[2], out.shape[1] * out.shape[2] * 4
    source, step = rows.ctypes.data + begin * 4, rows.shape[1] * 4
    for b in range(out.shape[0]):
        target = out.ctypes.data + b * stride
        for f in range(fields):
            row = floats(source + inverse[b * fields + f] * step, width)
            into = floats(target + f * width * 4, width)
            for j in range(width):
                into[j] = row[j]


@kernel
def pool_bag(rows, inverse, offsets, weights, begin, field, out):
    """out[b, field] = weighted sum of the rows of bag b (an empty bag gives zeros)."""
    width = out.shape[2]
    for b in range(out.shape[0]):
        for j in range(width):
            out[b, field, j] = 0.0
        for i in range(offsets[b], offsets[b + 1]):
            row = rows[inverse[i]]
            for j in range(width):
                out[b, field, j] += weights[i] * row[begin + j]


@kernel
def spread_singles(gradient, inverse, fields, begin, sums):
    """The way back of `pool_singles`: sums[unique, begin : begin + width] += gradient[b, f]."""
    width, stride = gradient.shape[2], gradient.shape[1] * gradient.shape[2] * 4
    target, step = sums.ctypes.data + begin * 4, sums.shape[1] * 4
    for b in range(gradient.shape[0]):
        source = gradient.ctypes.data + b * stride
        for f in range(fields):
            row = floats(target + inverse[b * fields + f] * step, width)
            add = floats(source + f * width * 4, width)
            for j in range(width):
                row[j] += add[j]


@kernel
def spread_bag(gradient, inverse, offsets, weights, begin, field, sums):
    """The way back of `pool_bag`."""
    width = gradient.shape[2]
    for b in range(gradient.shape[0]):
        for i in range(offsets[b], offsets[b + 1]):
            row = sums[inverse[i]]
            for j in range(width):
                row[begin + j] += weights[i] * gradient[b, field, j]


@kernel
def add_part(
    clocks, rows, places, gradients, counts, share, token, limit, rule, weight, law, on, ages, sums, kept, steps
):
    """Add one gradient's rows to an update's sums, leaving out rows that changed too much since its token.

    rows int64 [n]; places int32 [n] into sums float32 [m, weights] and kept float64 [m] (shares that were kept);
    limit < 0: no limit. Row staleness = max(0, last update - token) (our note on GBA, section 3.3); ages int64 [64]
    counts it, by its number of binary digits. A row weighs `weight` and, if law float32 [l] is not empty, times law[s]
    (the last one beyond it), s = the updates that it had since counts int32 [n] were pulled. on = ON_GRADIENT: that
    multiplies its gradient; ON_STEP: steps float64 [m] add up share times weight.
    """
    factor = np.float32(1.0) if rule == SUM else np.float32(share)
    n, width = rows.shape[0], sums.shape[1]
    source, target = gradients.ctypes.data, sums.ctypes.data
    for i in range(n):
        if i + AHEAD < n:
            prefetch(address_of(clocks, rows[i + AHEAD], 16))
        clock = ints_at(clocks, rows[i], 2)
        age = clock[0] - token
        digits = 0
        while age >> digits > 0:
            digits += 1
        ages[digits] += 1
        if limit >= 0 and age > limit:
            continue
        scale = np.float32(weight)
        if law.shape[0] > 0:
            scale *= law[min(max(clock[1] - counts[i], 0), law.shape[0] - 1)]
        at = places[i]
        kept[at] += share
        if on == ON_STEP:
            steps[at] += share * scale
            scale = factor
        else:
            steps[at] += share
            scale *= factor
        row, add = floats(target + at * width * 4, width), floats(source + i * width * 4, width)
        for j in range(width):
            row[j] += scale * add[j]


@kernel
def finish_sums(rule, sums, kept):
    """Under `per_id_mean` the sum over the kept parts is divided by their share (= their number, for equal parts)."""
    if rule == PER_ID_MEAN:
        for i in range(kept.shape[0]):
            if kept[i] > 0.0:
                for j in range(sums.shape[1]):
                    sums[i, j] /= np.float32(kept[i])


@kernel
def project(records, width, rows, kept, begin, stop, radius):
    """Shorten the weights [begin, stop) of every row that kept a gradient (kept float64 [n] > 0) to norm `radius`, if
    they are longer."""
    for i in range(rows.shape[0]):
        if kept[i] <= 0.0:
            continue
        record = floats_at(records, rows[i], width)
        scale = _shortened(record, begin, stop, radius)
        if scale < 1.0:
            for j in range(begin, stop):
                record[j] = np.float32(record[j] * scale)


@kernel
def project_halves(records, width, rows, kept, begin, stop, radius, spare):
    """The same where the weights are bfloat16, rounded towards 0: no longer than that. spare: float32 [weights]."""
    for i in range(rows.shape[0]):
        if kept[i] <= 0.0:
            continue
        home = address_of(records, rows[i], width * 4)
        widen(home, spare.ctypes.data, stop)
        scale = _shortened(spare, begin, stop, radius)
        if scale < 1.0:
            for j in range(begin, stop):
                spare[j] = np.float32(spare[j] * scale)
            source, into = words(spare.ctypes.data, stop), halves(home, stop)
            for j in range(begin, stop):
                into[j] = rounded(source[j], np.uint32(0))


@kernel
def _shortened(record, begin, stop, radius):
    """By what [begin, stop) is to be multiplied."""
    squares = 0.0
    for j in range(begin, stop):
        squares += np.float64(record[j]) * np.float64(record[j])
    return radius / np.sqrt(squares) if squares > radius * radius else 1.0
