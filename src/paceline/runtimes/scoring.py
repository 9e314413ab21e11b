"""Scoring batches with several threads, while nobody trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from paceline.batch import Batch, Floats
from paceline.errors import LossError
from paceline.runtimes.body import Store
from paceline.runtimes.compute import Replica
from paceline.runtimes.local import settle_thread
from paceline.threads import SureThread


def score(
    route: Store,
    replicas: list[Replica],
    source: Iterator[Batch],
    take: Callable[[int, Batch, Floats], None],
    statistics: Tensor,
) -> None:
    """Logits of every batch of `source`, one thread per replica: take(number of the batch, batch, logits [B]).

    statistics: of batch normalisation, pooled; the replicas have their own again afterwards. `take` is called by
    one thread at a time, in no particular order. The first error is raised here.
    """
    lock, taking = threading.Lock(), threading.Lock()
    numbered = enumerate(source)
    errors: list[BaseException] = []

    def body(replica: Replica) -> None:
        settle_thread()
        try:
            route.read_dense(replica.flat)
            replica.statistics.copy_(statistics)
            while not errors:
                with lock:
                    item = next(numbered, None)
                if item is None:
                    return
                number, batch = item
                logits = np.asarray(replica.predict(batch, route.read(batch.flat_ids())), np.float32)
                if not np.isfinite(logits).all():
                    raise LossError(
                        "a score is not finite: a learning rate was too high (optimizer.sparse.lr, optimizer.dense.lr),"
                        " or a number in the data is huge",
                        batch.span.start.file,
                    )
                with taking:
                    take(number, batch, logits)
        except BaseException as error:  # raised again below
            errors.append(error)

    own = [replica.statistics.clone() for replica in replicas]
    threads = [SureThread(target=body, args=(replica,), daemon=True) for replica in replicas]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: nobody may go on in the background
        errors.append(error)
        for thread in threads:
            thread.join()
        raise
    for replica, kept in zip(replicas, own, strict=True):
        replica.statistics.copy_(kept)
    if errors:
        raise errors[0]
