"""A plain serial loop for DeepFM on Criteo rows: dictionaries, numpy and torch; nothing of paceline's runtime.

It shares with paceline what defines the job (how a line becomes ids, what a new row starts from, the module's first
parameters) and nothing of how it is carried out: no table, no kernels for gathering, reducing or updating, no machine.
"""

from __future__ import annotations

import gzip

import numpy as np
import torch

from paceline.assembly import make_model
from paceline.kernels.hashing import field_seed, log_bucket, missing_id, mix64, start_row, text_id
from paceline.models.base import Inputs
from paceline.schema import criteo_schema

SEEDS = {name: field_seed(name) for name in criteo_schema().fields}


def ids_of(line: str) -> tuple[float, list[int]]:
    cells = line.rstrip("\n").split("\t")
    ids = []
    for name, cell in zip(criteo_schema().columns[1:], cells[1:], strict=True):
        if cell == "":
            ids.append(missing_id(name))
        elif name.startswith("I"):
            ids.append(
                int(np.array(mix64(SEEDS[name] ^ np.uint64(log_bucket(float(cell)) & (2**64 - 1)))).view(np.int64))
            )
        else:
            ids.append(int(np.array(text_id(cell.encode(), int(SEEDS[name])), np.uint64).view(np.int64)))
    return float(cells[0]), ids


def train_serially(config, files):
    """Rows {id: [weights | slots]} and the flat dense parameters after one pass, a local batch at a time."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = make_model(config, Inputs(criteo_schema().fields, 0))
    widths = [part.width for part in model.parts()]
    bounds = np.concatenate([np.full(part.width, part.std * 3**0.5, np.float32) for part in model.parts()])
    width = sum(widths)
    options = config.optimizer.dense.options
    dense = torch.optim.Adam(model.parameters(), **options)
    lr = np.float32(config.optimizer.sparse.options["lr"])
    rows: dict[int, np.ndarray] = {}

    def row(key: int) -> np.ndarray:
        if key not in rows:
            new = np.empty(width, np.float32)
            start_row(new, np.uint64(config.seed), np.int64(key), bounds)
            rows[key] = np.concatenate([new, np.full(width, 1e-6, np.float32)])
        return rows[key]

    for file in files:
        with gzip.open(file, "rt") as lines:
            samples = [ids_of(line) for line in lines]
        for start in range(0, len(samples), config.batch.global_):
            update(model, dense, row, samples[start : start + config.batch.global_], config.local_batch, widths, lr)
    return rows, torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def update(model, dense, row, samples, local, widths, lr):
    """One global batch: gradients of its local batches on the same parameters, summed in order, one step."""
    width = sum(widths)
    dense_sum, row_sums = None, {}
    for start in range(0, len(samples), local):
        batch = samples[start : start + local]
        share = len(batch) / len(samples)
        values = np.array([[row(key)[:width] for key in ids] for _, ids in batch])
        parts = {
            "linear": torch.from_numpy(values[:, :, :1].copy()).requires_grad_(),
            "embedding": torch.from_numpy(values[:, :, 1:].copy()).requires_grad_(),
        }
        labels = torch.tensor([label for label, _ in batch], dtype=torch.float32)
        model.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            model(parts, torch.zeros(len(batch), 0)), labels
        ).backward()
        flat = torch.cat([p.grad.reshape(-1) for p in model.parameters()]) * share
        dense_sum = flat if dense_sum is None else dense_sum + flat
        grads = torch.cat([parts["linear"].grad, parts["embedding"].grad], dim=2).numpy()
        sums: dict[int, np.ndarray] = {}
        for sample, (_, ids) in enumerate(batch):
            for field, key in enumerate(ids):
                sums[key] = sums.get(key, np.zeros(width, np.float32)) + grads[sample, field]
        for key, g in sums.items():
            row_sums[key] = row_sums.get(key, np.zeros(width, np.float32)) + np.float32(share) * g
    start = 0
    for p in model.parameters():
        p.grad = dense_sum[start : start + p.numel()].view_as(p)
        start += p.numel()
    dense.step()
    for key, g in row_sums.items():
        record = row(key)
        record[width:] += g * g
        record[:width] -= lr * g / (np.sqrt(record[width:]) + np.float32(1e-10))
