"""FBGEMM's table-batched embeddings for CPUs, fused optimizer, and the same through TorchRec's collection.

Tables are one per field, as its users have them, and a row's width is rounded up to a multiple of 4, as it demands: the
linear term's weight lies in the same row, so that one lookup serves both. Indices and offsets are made beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.systems.networks import WIDTH, loss_of, network
from benchmarks.systems.worker import DIM, EPS, FIELDS, LR, STD, Cycle, Data, Setup, serve
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    BoundsCheckMode,
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class FbgemmTables:
    """The operator itself: (indices, offsets) -> [B, FIELDS * width]."""

    def __init__(self, setup: Setup, sizes: list[int], width: int) -> None:
        kinds = {"adagrad": EmbOptimType.EXACT_ADAGRAD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in sizes],
            optimizer=kinds[setup.optimizer],
            learning_rate=LR,
            eps=EPS,
            bounds_check_mode=BoundsCheckMode.NONE,
        )
        self.weights = self.tables.split_embedding_weights()

    def inputs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids.t().reshape(-1), torch.arange(ids.numel() + 1)

    def __call__(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.tables(*inputs)


class TorchRecTables:
    """TorchRec's fused collection of tables on keyed jagged tensors."""

    def __init__(self, setup: Setup, sizes: list[int], width: int) -> None:
        self.keys = [f"f{i}" for i in range(len(sizes))]
        kinds: dict[str, Any] = {"adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}
        self.tables = FusedEmbeddingBagCollection(
            [
                EmbeddingBagConfig(name=f"t{key}", embedding_dim=width, num_embeddings=size, feature_names=[key])
                for key, size in zip(self.keys, sizes, strict=True)
            ],
            optimizer_type=kinds[setup.optimizer],
            optimizer_kwargs={"lr": LR, "eps": EPS},
        )
        self.weights = list(self.tables.state_dict().values())

    def inputs(self, ids: Tensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.from_lengths_sync(
            self.keys, ids.t().reshape(-1), torch.ones(ids.numel(), dtype=torch.int32)
        )

    def __call__(self, inputs: KeyedJaggedTensor) -> Tensor:
        return self.tables(inputs).values()


class Fbgemm:
    """model "rows": lookup, backward and update of rows alone, under a gradient that is given."""

    def __init__(self, setup: Setup) -> None:
        data = Data.read(setup.folder)
        need = WIDTH[setup.model]
        self.width = -(-need // 4) * 4
        made = TorchRecTables if setup.variant == "torchrec" else FbgemmTables
        self.tables = made(setup, data.sizes, self.width)
        for weight in self.tables.weights:
            with torch.no_grad():
                weight.normal_(std=STD)
                if need % 4:
                    weight[:, need - 1 :] = 0.0
        self.need = need
        self.batches = Cycle(
            [
                (self.tables.inputs(torch.from_numpy(i)), torch.from_numpy(x), torch.from_numpy(y))
                for i, x, y in data.batches(setup.batch)
            ]
        )
        self.bf16 = setup.precision == "bf16"
        self.alone = setup.model == "rows"
        if self.alone:
            self.gradient = 1e-3 * torch.randn(setup.batch, FIELDS * DIM)
        else:
            self.net = network(setup.model)
            self.optimizer = torch.optim.Adagrad(self.net.parameters(), lr=LR, eps=EPS)

    def train(self, steps: int) -> list[Tensor]:
        losses = []
        for inputs, numbers, labels in self.batches.take(steps):
            flat = self.tables(inputs)
            if self.alone:
                flat.backward(self.gradient)  # the update of the rows is a part of it
                continue
            rows = flat.view(len(labels), FIELDS, self.width)[:, :, : self.need]
            self.optimizer.zero_grad()
            loss = loss_of(self.net, rows, numbers, labels, self.bf16)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return losses


if __name__ == "__main__":
    serve(Fbgemm, "fbgemm_gpu_cpu", "torchrec")
