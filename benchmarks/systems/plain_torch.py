"""Plain PyTorch: one nn.Embedding with sparse gradients for all fields, torch's Adagrad, torch's threads."""

from __future__ import annotations

import torch
from benchmarks.systems.networks import WIDTH, loss_of, network
from benchmarks.systems.worker import DIM, EPS, LR, STD, Cycle, Data, LeftOut, Setup, serve
from torch import nn


class PlainTorch:
    """model "rows": lookup, backward and update of rows alone, under a gradient that is given."""

    def __init__(self, setup: Setup) -> None:
        if setup.optimizer != "adagrad":
            raise LeftOut("torch has no row-wise Adagrad")
        data = Data.read(setup.folder)
        offsets = data.offsets()
        self.batches = Cycle(
            [tuple(map(torch.from_numpy, (i + offsets, x, y))) for i, x, y in data.batches(setup.batch)]
        )
        width = WIDTH[setup.model]
        self.table = nn.Embedding(sum(data.sizes), width, sparse=True)
        with torch.no_grad():
            self.table.weight.normal_(std=STD)
            if width != DIM:
                self.table.weight[:, -1] = 0.0
        self.alone = setup.model == "rows"
        self.bf16 = setup.precision == "bf16"
        self.optimizers = [torch.optim.Adagrad(self.table.parameters(), lr=LR, eps=EPS)]
        if self.alone:
            self.gradient = 1e-3 * torch.randn(setup.batch, len(data.sizes), width)
        else:
            self.net = network(setup.model)
            self.optimizers.append(torch.optim.Adagrad(self.net.parameters(), lr=LR, eps=EPS))

    def train(self, steps: int) -> list[torch.Tensor]:
        losses = []
        for ids, numbers, labels in self.batches.take(steps):
            rows = self.table(ids)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            if self.alone:
                rows.backward(self.gradient)
            else:
                loss = loss_of(self.net, rows, numbers, labels, self.bf16)
                loss.backward()
                losses.append(loss.detach())
            for optimizer in self.optimizers:
                optimizer.step()
        return losses


if __name__ == "__main__":
    serve(PlainTorch)
