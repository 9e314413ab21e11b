"""FuxiCTR: models put together from its layers as its model zoo does, and its own train_step.

Its package has the layers, its repository the models. Numbers are embedded like ids in all but DLRM, as it has them;
its step clips the gradient's norm. Batches are dictionaries of tensors already, as its loader hands them over.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from benchmarks.systems.worker import BOTTOM, DIM, FIELDS, HIDDEN, LR, NUMBERS, STD, Cycle, Data, LeftOut, Setup, serve
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

IDS = [f"c{i}" for i in range(FIELDS)]
DENSE = [f"i{i}" for i in range(NUMBERS)]


class Zoo(BaseModel):
    """LR, FM, DeepFM and DLRM."""

    def __init__(self, features: FeatureMap, name: str) -> None:
        super().__init__(features, gpu=-1, verbose=0, model_root=".", metrics=["logloss"])
        self.name = name
        init = f"partial(nn.init.normal_, std={STD})"
        if name == "lr":
            self.linear = LogisticRegression(features, use_bias=True)
        elif name == "dlrm":
            self.embedding = FeatureEmbedding(features, DIM, init, not_required_feature_columns=DENSE)
            self.bottom = MLP_Block(NUMBERS, output_dim=DIM, hidden_units=list(BOTTOM), output_activation="ReLU")
            self.products = InnerProductInteraction(FIELDS + 1, output="inner_product")
            pairs = (FIELDS + 1) * FIELDS // 2
            self.mlp = MLP_Block(pairs + DIM, output_dim=1, hidden_units=list(HIDDEN))
        else:
            self.embedding = FeatureEmbedding(features, DIM, init)
            self.fm = FactorizationMachine(features)
            if name == "deepfm":
                self.mlp = MLP_Block(features.sum_emb_out_dim(), output_dim=1, hidden_units=list(HIDDEN))
        self.compile("Adagrad", "binary_crossentropy", LR)
        self.reset_parameters()
        self.model_to_device()
        self._max_gradient_norm = 10.0  # fit()'s own

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.get_inputs(inputs)
        if self.name == "lr":
            logit = self.linear(x)
        elif self.name == "dlrm":
            bottom = self.bottom(torch.stack([x[name] for name in DENSE], 1))
            vectors = torch.cat([self.embedding(x), bottom.unsqueeze(1)], 1)
            logit = self.mlp(torch.cat([self.products(vectors), bottom], 1))
        else:
            embedded = self.embedding(x)
            logit = self.fm(x, embedded)
            if self.name == "deepfm":
                logit = logit + self.mlp(embedded.flatten(1))
        return {"y_pred": self.output_activation(logit)}


class FuxiCtr:
    def __init__(self, setup: Setup) -> None:
        if setup.model == "rows":
            raise LeftOut("it has no fused tables: plain PyTorch's")
        if setup.precision != "fp32":
            raise LeftOut("its step has no mixed precision")
        if setup.optimizer != "adagrad":
            raise LeftOut("its optimizers are torch's: no row-wise Adagrad")
        data = Data.read(setup.folder)
        features = FeatureMap("bench", ".")
        sizes = zip(IDS, data.sizes, strict=True)
        specs = [(name, {"type": "categorical", "source": "", "vocab_size": size}) for name, size in sizes]
        features.features = OrderedDict([*specs, *((name, {"type": "numeric", "source": ""}) for name in DENSE)])
        features.labels, features.default_emb_dim = ["label"], DIM
        features.num_fields = features.get_num_fields()
        features.set_column_index()
        self.model = Zoo(features, setup.model)
        made = []
        for i, x, y in data.batches(setup.batch):
            columns = {name: torch.from_numpy(i[:, f].copy()) for f, name in enumerate(IDS)}
            columns |= {name: torch.from_numpy(x[:, f].copy()) for f, name in enumerate(DENSE)}
            made.append({**columns, "label": torch.from_numpy(y)})
        self.batches = Cycle(made)

    def train(self, steps: int) -> list[float]:
        self.model.train()
        return [self.model.train_step(batch).item() for batch in self.batches.take(steps)]


if __name__ == "__main__":
    serve(FuxiCtr, "fuxictr")
