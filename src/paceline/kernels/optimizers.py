"""The row optimizers, one row at a time, where the row lives. Each has a numpy twin in `paceline.params.sparse`."""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel
from paceline.kernels.pointers import floats_at, ints_at

SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, FTRL = 0, 1, 2, 3, 4


@kernel
def _adagrad(record, g, lr, eps):
    n = g.shape[0]
    for j in range(n):
        record[n + j] += g[j] * g[j]
        record[j] -= lr * g[j] / (np.sqrt(record[n + j]) + eps)


@kernel
def _rowwise_adagrad(record, g, lr, eps):
    n = g.shape[0]
    square = np.float32(0.0)
    for j in range(n):
        square += g[j] * g[j]
    record[n] += square / np.float32(n)
    scale = lr / (np.sqrt(record[n]) + eps)
    for j in range(n):
        record[j] -= scale * g[j]


@kernel
def _adam(record, g, lr, eps, beta1, beta2, correct1, correct2):
    n = g.shape[0]
    one = np.float32(1.0)
    for j in range(n):
        m = beta1 * record[n + j] + (one - beta1) * g[j]
        v = beta2 * record[2 * n + j] + (one - beta2) * g[j] * g[j]
        record[n + j] = m
        record[2 * n + j] = v
        record[j] -= lr * (m / correct1) / (np.sqrt(v / correct2) + eps)


@kernel
def _ftrl(record, g, lr, beta, l1, l2):
    n = g.shape[0]
    two = np.float32(2.0)
    for j in range(n):
        z, square, w = record[n + j], record[2 * n + j], record[j]
        if square == np.float32(0.0):
            # so that the closed form starts from the row's own first value
            z = -w * (beta / lr + two * l2) - np.sign(w) * l1
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
def update_rows(kind, records, width, clocks, rows, sums, kept, version, hyper):
    """One optimizer step on every row that kept a gradient; its clock becomes `version`.

    sums float32 [m, weights], kept float64 [m]; hyper float32 [6], see `paceline.params.sparse` for each optimizer's
    order. Returns the number of rows that were updated.
    """
    updated = 0
    correct1 = np.float32(1.0)
    correct2 = np.float32(1.0)
    if kind == ADAM:
        correct1 = np.float32(1.0 - np.float64(hyper[2]) ** version)
        correct2 = np.float32(1.0 - np.float64(hyper[3]) ** version)
    for i in range(rows.shape[0]):
        if kept[i] <= 0.0:
            continue
        record = floats_at(records, rows[i], width)
        g = sums[i]
        if kind == SGD:
            for j in range(g.shape[0]):
                record[j] -= hyper[0] * g[j]
        elif kind == ADAGRAD:
            _adagrad(record, g, hyper[0], hyper[1])
        elif kind == ROWWISE_ADAGRAD:
            _rowwise_adagrad(record, g, hyper[0], hyper[1])
        elif kind == ADAM:
            _adam(record, g, hyper[0], hyper[1], hyper[2], hyper[3], correct1, correct2)
        else:
            _ftrl(record, g, hyper[0], hyper[1], hyper[2], hyper[3])
        clock = ints_at(clocks, rows[i], 2)
        clock[0] = version
        clock[1] += 1
        updated += 1
    return updated


@kernel
def read_records(records, width, clocks, rows, out, out_clocks):
    """Copy whole records float32 [n, width] and clocks int64 [n, 2] out."""
    for i in range(rows.shape[0]):
        record, clock = floats_at(records, rows[i], width), ints_at(clocks, rows[i], 2)
        for j in range(width):
            out[i, j] = record[j]
        out_clocks[i, 0], out_clocks[i, 1] = clock[0], clock[1]


@kernel
def write_records(records, width, clocks, rows, values, new_clocks):
    """Put whole records and clocks back: the way of optimizers written in numpy, and of a restore."""
    for i in range(rows.shape[0]):
        record, clock = floats_at(records, rows[i], width), ints_at(clocks, rows[i], 2)
        for j in range(width):
            record[j] = values[i, j]
        clock[0], clock[1] = new_clocks[i, 0], new_clocks[i, 1]
