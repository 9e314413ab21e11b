"""The row optimizers, one row at a time, where the row lives.

Each has a numpy twin in `paceline.params.sparse`, those with decay periods in `paceline.params.swap`, that which knows
what its gradients missed in `paceline.params.delay`.
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.halves import lift, lower, salt_of
from paceline.kernels.jit import kernel
from paceline.kernels.pointers import AHEAD, address_of, floats, ints_at, prefetch, prefetch_bytes

SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL, RMSPROP = 0, 1, 2, 3, 4, 5
# With decay periods: the last slot of a row is its period counter; hyper[4] is the decay, hyper[5] > 0 means eager.
ADAGRAD_SWAP, ROWWISE_ADAGRAD_SWAP, ADAM_SWAP, RMSPROP_SWAP, FTRL_SWAP = 6, 7, 8, 9, 10
ADAGRAD_DELAY = 11

# Below it a decayed sum of squares would end at 0, which FTRL takes for a row that was never updated.
SMALLEST = np.float32(np.finfo(np.float32).tiny)


@kernel
def _sgd(w, g, lr):
    for j in range(g.shape[0]):
        w[j] -= lr * g[j]


@kernel
def _adagrad(w, squares, g, lr, eps):
    for j in range(g.shape[0]):
        grown = squares[j] + g[j] * g[j]
        squares[j] = grown
        w[j] -= lr * g[j] / (np.sqrt(grown) + eps)


@kernel
def _rowwise_adagrad(w, sum_, g, lr, eps):
    n = g.shape[0]
    square = np.float32(0.0)
    for j in range(n):
        square += g[j] * g[j]
    sum_[0] += square / np.float32(n)
    scale = lr / (np.sqrt(sum_[0]) + eps)
    for j in range(n):
        w[j] -= scale * g[j]


@kernel
def _adam(w, first, second, g, lr, eps, beta1, beta2, correct1, correct2):
    one = np.float32(1.0)
    for j in range(g.shape[0]):
        m = beta1 * first[j] + (one - beta1) * g[j]
        v = beta2 * second[j] + (one - beta2) * g[j] * g[j]
        first[j] = m
        second[j] = v
        w[j] -= lr * (m / correct1) / (np.sqrt(v / correct2) + eps)


@kernel
def _rmsprop(w, squares, g, lr, eps, alpha):
    one = np.float32(1.0)
    for j in range(g.shape[0]):
        v = alpha * squares[j] + (one - alpha) * g[j] * g[j]
        squares[j] = v
        w[j] -= lr * g[j] / (np.sqrt(v) + eps)


@kernel
def _dual(w, n, lr, beta, l1, l2):
    """The z whose closed form, with the sum of squares n, is the weight w."""
    return -w * ((beta + np.sqrt(n)) / lr + np.float32(2.0) * l2) - np.sign(w) * l1


@kernel
def _ftrl(record, g, lr, beta, l1, l2):
    n = g.shape[0]
    two = np.float32(2.0)
    for j in range(n):
        z, square, w = record[n + j], record[2 * n + j], record[j]
        if square == np.float32(0.0):
            # so that the closed form starts from the row's own first value
            z = _dual(w, square, lr, beta, l1, l2)
        grown = square + g[j] * g[j]
        z += g[j] - (np.sqrt(grown) - np.sqrt(square)) / lr * w
        record[n + j] = z
        record[2 * n + j] = grown
        size = abs(z) - l1
        if size <= np.float32(0.0):
            record[j] = np.float32(0.0)
        else:
            record[j] = -np.sign(z) * size / ((beta + np.sqrt(grown)) / lr + two * l2)


@kernel
def _owed(record, counter, periods, decay, eager):
    """By what the row's sums are to be multiplied (1: nothing is owed); moves its period counter on.

    A counter below 0 is that of a row without any update that is to start in the current period.
    """
    known = np.int64(record[counter])
    if known < 0:
        record[counter] = np.float32(periods)
        return np.float32(1.0)
    if periods <= known:
        return np.float32(1.0)
    if eager > np.float32(0.0):
        record[counter] = np.float32(periods)
        return np.float32(np.float64(decay) ** np.float64(periods - known))
    record[counter] = np.float32(known + 1)
    return decay


@kernel
def _decay(kind, record, n, factor, hyper):
    """Multiply the sums of squares of a row of n weights by `factor`, the way its optimizer asks for."""
    if kind in (ADAGRAD_SWAP, ROWWISE_ADAGRAD_SWAP):
        for k in range(n, record.shape[0] - 1):
            record[k] = max(factor * record[k], hyper[2])
    elif kind == ADAM_SWAP:
        for k in range(2 * n, 3 * n + 1):
            record[k] *= factor
    elif kind == RMSPROP_SWAP:
        for k in range(n, 2 * n + 1):
            record[k] *= factor
    else:
        for j in range(n):
            if record[2 * n + j] > np.float32(0.0):
                square = max(factor * record[2 * n + j], SMALLEST)
                record[2 * n + j] = square
                if record[j] != np.float32(0.0):
                    record[n + j] = _dual(record[j], square, hyper[0], hyper[1], hyper[2], hyper[3])


@kernel
def _adam_swap(record, g, lr, eps, beta1, correct1):
    n = g.shape[0]
    one = np.float32(1.0)
    record[3 * n] += one
    count = record[3 * n]
    for j in range(n):
        m = beta1 * record[n + j] + (one - beta1) * g[j]
        record[n + j] = m
        record[2 * n + j] += g[j] * g[j]
        record[j] -= lr * (m / correct1) / (np.sqrt(record[2 * n + j] / count) + eps)


@kernel
def _rmsprop_swap(record, g, lr, eps):
    n = g.shape[0]
    record[2 * n] += np.float32(1.0)
    count = record[2 * n]
    for j in range(n):
        record[n + j] += g[j] * g[j]
        record[j] -= lr * g[j] / (np.sqrt(record[n + j] / count) + eps)


@kernel
def _adagrad_delay(record, g, overlap, missed, lr, revise):
    n = g.shape[0]
    for j in range(n):
        before = np.sqrt(record[2 * n + j])
        z = record[n + j] + (g[j] * g[j] + np.float32(2.0) * overlap[j])
        record[n + j] = z
        record[2 * n + j] = max(record[2 * n + j], z)
        root = np.sqrt(record[2 * n + j])
        record[3 * n + j] += g[j]
        record[j] -= lr * g[j] / root
        if revise > np.float32(0.0):
            record[j] += (lr / before - lr / root) * missed[j]


@kernel
def update_rows(kind, records, width, clocks, rows, sums, kept, steps, version, periods, hyper, overlap, missed, spare):
    """One optimizer step on every row that kept a gradient; its clock becomes `version`. The row's weights go the share
    steps / kept of that step, if it is below 1.

    sums float32 [m, weights], kept and steps float64 [m]; periods: whole decay periods that have passed, int64; hyper
    float32 [6], see each optimizer's `hyper` for their order; overlap, missed: like sums, for ADAGRAD_DELAY only;
    spare: empty, or float32 [weights + slots] to work on a row in whose weights are bfloat16 (see `halves`). Returns
    the number of rows that were updated.
    """
    updated = 0
    correct1 = np.float32(1.0)
    correct2 = np.float32(1.0)
    if kind in (ADAM, ADAM_SWAP):
        correct1 = np.float32(1.0 - np.float64(hyper[2]) ** version)
    if kind == ADAM:
        correct2 = np.float32(1.0 - np.float64(hyper[3]) ** version)
    n, m = sums.shape[1], rows.shape[0]
    before = np.empty(n, np.float32)
    half = spare.shape[0] > 0
    length = spare.shape[0] if half else width
    salt = salt_of(version)
    for i in range(m):
        if i + AHEAD < m:
            prefetch_bytes(address_of(records, rows[i + AHEAD], width * 4), width * 4)
            prefetch(address_of(clocks, rows[i + AHEAD], 16))
        if kept[i] <= 0.0:
            continue
        home = address_of(records, rows[i], width * 4)
        at = home
        if half:
            at = spare.ctypes.data
            lift(home, at, n, length - n)
        record, g = floats(at, length), floats(sums.ctypes.data + i * n * 4, n)
        w, first, second = floats(at, n), floats(at + n * 4, n), floats(at + 2 * n * 4, n)
        part = np.float32(steps[i] / kept[i])
        if part < np.float32(1.0):
            for j in range(n):
                before[j] = w[j]
        if ADAGRAD_SWAP <= kind <= FTRL_SWAP:
            factor = _owed(record, length - 1, periods, hyper[4], hyper[5])
            if factor < np.float32(1.0):
                _decay(kind, record, g.shape[0], factor, hyper)
        if kind == SGD:
            _sgd(w, g, hyper[0])
        elif kind in (ADAGRAD, ADAGRAD_SWAP):
            _adagrad(w, first, g, hyper[0], hyper[1])
        elif kind in (ROWWISE_ADAGRAD, ROWWISE_ADAGRAD_SWAP):
            _rowwise_adagrad(w, first, g, hyper[0], hyper[1])
        elif kind == ADAM:
            _adam(w, first, second, g, hyper[0], hyper[1], hyper[2], hyper[3], correct1, correct2)
        elif kind == RMSPROP:
            _rmsprop(w, first, g, hyper[0], hyper[1], hyper[2])
        elif kind == ADAM_SWAP:
            _adam_swap(record, g, hyper[0], hyper[1], hyper[2], correct1)
        elif kind == RMSPROP_SWAP:
            _rmsprop_swap(record, g, hyper[0], hyper[1])
        elif kind == ADAGRAD_DELAY:
            _adagrad_delay(record, g, overlap[i], missed[i], hyper[0], hyper[1])
        else:
            _ftrl(record, g, hyper[0], hyper[1], hyper[2], hyper[3])
        if part < np.float32(1.0):
            for j in range(n):
                w[j] = before[j] + part * (w[j] - before[j])
        if half:
            lower(at, home, n, length - n, salt)
        clock = ints_at(clocks, rows[i], 2)
        clock[0] = version
        clock[1] += 1
        updated += 1
    return updated


@kernel
def read_records(records, width, clocks, rows, weights, out, out_clocks):
    """Copy whole records float32 [n, weights + slots] and clocks int64 [n, 2] out. weights: how many there are in
    bfloat16, 0: all is float32."""
    length = out.shape[1]
    for i in range(rows.shape[0]):
        home, clock = address_of(records, rows[i], width * 4), ints_at(clocks, rows[i], 2)
        if weights > 0:
            lift(home, out.ctypes.data + i * length * 4, weights, length - weights)
        else:
            record = floats(home, length)
            for j in range(length):
                out[i, j] = record[j]
        out_clocks[i, 0], out_clocks[i, 1] = clock[0], clock[1]


@kernel
def write_records(records, width, clocks, rows, weights, values, new_clocks):
    """Put whole records and clocks back: the way of optimizers written in numpy, and of a restore."""
    length = values.shape[1]
    for i in range(rows.shape[0]):
        home, clock = address_of(records, rows[i], width * 4), ints_at(clocks, rows[i], 2)
        clock[0], clock[1] = new_clocks[i, 0], new_clocks[i, 1]
        if weights > 0:
            lower(values.ctypes.data + i * length * 4, home, weights, length - weights, salt_of(clock[0]))
        else:
            record = floats(home, length)
            for j in range(length):
                record[j] = values[i, j]
