"""DeepCTR-Torch: its own DeepFM and the step of its fit(), on batches that are tensors already.

Its fit() takes samples out of the data set one by one, which costs more than training on them; that is left out, in its
favour. FM and LR are its DeepFM without the deep part, and without the factor term. It has no DLRM and no bf16, and
takes ids as float32: they have to be below 2^24.
"""

from __future__ import annotations

import torch
from benchmarks.systems.worker import DIM, EPS, HIDDEN, LR, NUMBERS, STD, Cycle, Data, LeftOut, Setup, serve
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DeepFM


class DeepCtrTorch:
    def __init__(self, setup: Setup) -> None:
        if setup.model not in ("lr", "fm", "deepfm"):
            raise LeftOut(f"it has no {setup.model}")
        if setup.precision != "fp32":
            raise LeftOut("its step has no mixed precision")
        if setup.optimizer != "adagrad":
            raise LeftOut("its optimizers are torch's: no row-wise Adagrad")
        data = Data.read(setup.folder)
        if max(data.sizes) >= 2**24:
            raise LeftOut("it casts ids to float32: at most 2^24 to a field")
        sparse = [SparseFeat(f"c{i}", size, embedding_dim=DIM) for i, size in enumerate(data.sizes)]
        features = [*sparse, *(DenseFeat(f"i{i}", 1) for i in range(NUMBERS))]
        deep = setup.model == "deepfm"
        self.model = DeepFM(
            features,
            [] if setup.model == "lr" else features if deep else sparse,
            use_fm=setup.model != "lr",
            dnn_hidden_units=HIDDEN if deep else (),
            l2_reg_linear=0,
            l2_reg_embedding=0,
            init_std=STD,
        )
        optimizer = torch.optim.Adagrad(self.model.parameters(), lr=LR, eps=EPS)
        self.model.compile(optimizer, "binary_crossentropy")
        order = list(self.model.feature_index)
        if order != [f.name for f in features]:
            raise RuntimeError(f"its columns are in another order than ours: {order}")
        self.batches = Cycle(
            [
                (torch.cat([torch.from_numpy(i).float(), torch.from_numpy(x)], 1), torch.from_numpy(y))
                for i, x, y in data.batches(setup.batch)
            ]
        )

    def train(self, steps: int) -> list[float]:
        model = self.model.train()
        losses = []
        for x, y in self.batches.take(steps):
            predicted = model(x).squeeze(-1)
            model.optim.zero_grad()
            loss = model.loss_func(predicted, y, reduction="sum")
            total = loss + model.get_regularization_loss() + model.aux_loss
            losses.append(loss.item() / len(y))
            total.backward()
            model.optim.step()
        return losses


if __name__ == "__main__":
    serve(DeepCtrTorch, "deepctr-torch")
