"""A group of processes that all take part in every exchange, and what it has sent.

Exchanges go by nccl where every process has a GPU of its own, else by gloo. Every collective here is an all-to-all:
partial sums are sent to who needs them and added there in the order of the ranks, so that a result does not depend on
who was first; these are the bytes of a reduce-scatter around a ring.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore  # torch.distributed has them, but hides them from mypy

from paceline.errors import TrainingError
from paceline.exchange.thin import HEAD, Thin, pack, unpack

_POLL = 50e-6  # seconds between looks at a GPU's exchange
_LOOK = timedelta(seconds=0.5)  # how often a waiting rank looks whether it is still worth it
Pieces = Mapping[str, Mapping[int, Tensor]]
Bytes8 = npt.NDArray[np.uint8]


def open_store(host: str = "127.0.0.1", port: int = 0) -> TCPStore:
    """Where the ranks of groups find each other: keep it until they have; `port` 0 takes a free one (`store.port`).

    It is best held by a process that outlives the ranks. One store serves several groups, by different names.
    """
    return TCPStore(host, port, is_master=True, wait_for_workers=False)


def connect(
    host: str,
    port: int,
    name: str,
    rank: int,
    size: int,
    timeout: float = 60.0,
    address: str | None = None,
    gpu: torch.device | None = None,
) -> Group:
    """Join the group called `name` (a new name for each group of the store at host:port) as `rank` of `size`.

    Returns when all have joined. timeout: seconds for that and for every exchange; address: this process's own, which
    the others can reach (default: as gloo finds it, see GLOO_SOCKET_IFNAME); gpu: one that no other rank uses: if all
    ranks have one, exchanges go by nccl. Raises TrainingError.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = PrefixStore(name, TCPStore(host, port, timeout=limit, wait_for_workers=False))
        if _all_have(store, rank, size, gpu is not None and dist.is_nccl_available()):
            nccl: Any = dist.ProcessGroupNCCL
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else a lost rank ends the others' processes
            return Group(nccl(store, rank, size, nccl.Options()), rank, size, gpu, timeout)
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_default_device() if address is None else gloo.create_device(hostname=address)]
        options._timeout = limit
        return Group(gloo(store, rank, size, options), rank, size)
    except RuntimeError as error:
        raise TrainingError(f"exchange: rank {rank} of {size} could not join the group {name}: {error}") from error


def _all_have(store: PrefixStore, rank: int, size: int, gpu: bool) -> bool:
    """Whether every rank has told the store that it has a GPU. All get the same answer."""
    store.set(f"gpu-{rank}", "1" if gpu else "0")
    return all(store.get(f"gpu-{other}") == b"1" for other in range(size))


@final
class Group:
    """Rank `rank` of `size` processes. `ids`, `values`: bytes sent to other ranks so far, by kind. `lost`: asked while
    the rank waits; once it says so, the exchange fails. It is for whoever knows that another rank is gone: one whose
    packets vanish breaks no connection, and would be waited for until the timeout.

    Not thread-safe. After an error the group is of no use: close it and connect another.
    """

    def __init__(
        self, process_group: Any, rank: int, size: int, gpu: torch.device | None = None, timeout: float = 60.0
    ) -> None:
        self.rank, self.size = rank, size
        self._gpu, self._timeout = gpu, timeout
        self.ids: Counter[str] = Counter()
        self.values: Counter[str] = Counter()
        self.lost: Callable[[], bool] = lambda: False
        self._group = process_group
        self._waiting = False  # an exchange was given up that gloo still waits for

    def messages(self, kinds: Mapping[str, Mapping[int, Bytes8]]) -> dict[int, Bytes8]:
        """Bytes to ranks, whose lengths these do not know. kinds[kind][rank]: a rank's are joined in the order of the
        kinds and counted as `ids`. Returns what came from whom, without those that sent nothing."""
        for kind, to in kinds.items():
            self.ids[kind] += sum(message.shape[0] for rank, message in to.items() if rank != self.rank)
        return self._deliver(
            [
                np.concatenate([np.zeros(0, np.uint8), *(to[rank] for to in kinds.values() if rank in to)])
                for rank in range(self.size)
            ]
        )

    def thinned(self, kind: str, to: Mapping[int, Thin]) -> dict[int, Thin]:
        """Numbers of which most are zero to ranks, which do not know how many are not: counted as `values`, of `kind`
        and, where they stand, of kind "places" of it. Returns what came from whom; to and from oneself, too."""
        away = [sent for rank, sent in to.items() if rank != self.rank]
        self.values[kind] += sum(sent.values.nbytes for sent in away)
        self.values[f"{kind}_places"] += sum(sent.places.nbytes for sent in away)
        self.ids["lengths"] += HEAD * len(away)
        nothing = np.zeros(0, np.uint8)
        came = self._deliver([pack(to[rank]) if rank in to else nothing for rank in range(self.size)])
        return {rank: unpack(data) for rank, data in came.items()}

    def _deliver(self, joined: list[Bytes8]) -> dict[int, Bytes8]:
        """Bytes to each rank; what came from whom, without those that sent nothing."""
        lengths = torch.tensor([message.shape[0] for message in joined])
        coming = self._exchange(lengths, [1] * self.size, [1] * self.size)
        self.ids["lengths"] += 8 * (self.size - 1)
        sizes = [int(n) for n in coming]
        data = self._exchange(torch.from_numpy(np.concatenate(joined)), lengths.tolist(), sizes)
        parts = torch.split(data, sizes)
        return {rank: part.numpy() for rank, part in enumerate(parts) if part.numel()}

    def swap(self, pieces: Pieces, expected: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, Tensor]]:
        """pieces[kind][rank]: float32 to that rank; expected[kind][rank]: how many numbers come from it. Every rank
        names the same kinds. Returns what came, flat, counted by kind as `values`; to and from oneself, too."""
        kinds = sorted(pieces)
        nothing = torch.zeros(0)
        sending = [pieces[kind].get(rank, nothing).reshape(-1) for rank in range(self.size) for kind in kinds]
        for kind in kinds:
            self.values[kind] += sum(4 * t.numel() for rank, t in pieces[kind].items() if rank != self.rank)
        out = [sum(t.numel() for t in sending[i : i + len(kinds)]) for i in range(0, len(sending), len(kinds))]
        coming = [[expected[kind].get(rank, 0) for kind in kinds] for rank in range(self.size)]
        data = self._exchange(torch.cat(sending), out, [sum(sizes) for sizes in coming])
        parts = iter(torch.split(data, [size for sizes in coming for size in sizes]))
        found: dict[str, dict[int, Tensor]] = {kind: {} for kind in kinds}
        for rank in range(self.size):
            for kind in kinds:
                part = next(parts)
                if rank in expected[kind]:
                    found[kind][rank] = part
        return found

    def close(self) -> None:
        """Leave: what the others wait for from this rank fails at once, unless this rank has given up an exchange: then
        it fails when gloo has given it up as well."""
        group, self._group = [self._group], None
        if self._waiting:  # the group's end waits for that, and nobody else should
            threading.Thread(target=group.clear, name="leave a group", daemon=True).start()

    def _exchange(self, data: Tensor, sizes: list[int], coming: list[int]) -> Tensor:
        if self.size == 1:
            return data.clone()
        if self._group is None:
            raise TrainingError(f"exchange: rank {self.rank} of {self.size} has left its group")
        if self._gpu is not None:
            data = data.to(self._gpu)
        out = data.new_empty(sum(coming))
        try:
            wait = self._await if self._gpu is None else self._await_gpu
            wait(self._group.alltoall_base(out, data, coming, sizes, dist.AllToAllOptions()))
        except RuntimeError as error:
            raise TrainingError(
                f"exchange: rank {self.rank} of {self.size} lost another rank, or waited too long for it: {error}"
            ) from error
        return out.cpu()

    def _await(self, work: Any) -> None:
        while not work.is_completed():
            try:
                work.wait(_LOOK)
                return
            except RuntimeError:  # it failed, or it takes longer
                if not work.is_completed() and self.lost():
                    self._waiting = True
                    raise
        work.wait()

    def _await_gpu(self, work: Any) -> None:
        """nccl's own wait would not return before the end, or would break off the group."""
        until = time.monotonic() + self._timeout
        while not work.is_completed():
            if self.lost() or time.monotonic() > until:
                self._group.abort()
                raise RuntimeError(f"it was given up, at the latest after {self._timeout:g} seconds")
            time.sleep(_POLL)
        work.wait()
