"""Several processes that train one model together, each on its share of a step's pairs: data parallelism.

Every rank holds the whole model, sees all pairs of a step and computes some of them; gradients, losses and metrics are
summed over the ranks, so that all of them take the same optimizer step and know the same. transformers' Trainer is told
nothing of it: its way (DistributedDataParallel) averages over processes rather than pairs, wants a forward pass through
the wrapped model, and the same number of them on each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from merlina.errors import TrainingError

# Whoever watches the ranks ends them all where one is gone; a slow one, on a full disk say, is waited for.
_PATIENCE = timedelta(days=7)
_BUCKET_BYTES = 64 * 2**20
_T = TypeVar("_T")


class LostRankError(TrainingError):
    """Another rank is gone: never the first thing that went wrong."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among those that train together, from 0 on, and how many they are.

    Every method but `share` and `seeded_for_step` is to be called by all of them, in the same order. Each raises
    LostRankError where one of the others is gone.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes for all."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Indices of those items that are this rank's: each rank gets about the same sum of sizes. Maybe none."""
        if self.count == 1:
            return list(range(len(sizes)))
        totals, mine = [0] * self.count, []
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            receiver = totals.index(min(totals))
            totals[receiver] += sizes[index]
            if receiver == self.rank:
                mine.append(index)
        return mine

    @contextlib.contextmanager
    def seeded_for_step(self, seed: int, step: int) -> Iterator[None]:
        """Seed the random numbers of one step by seed, step and rank; afterwards, restore the generators.

        Dropout then depends on nothing else that draws random numbers: evaluations, checkpoints, a resume. Ranks drop
        different elements.
        """
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed(((seed << 40) + (step << 10) + self.rank) % 2**63)
            yield

    def sum(self, values: Tensor) -> None:
        """`values`, of one shape on all ranks, become their sum over the ranks, in place."""
        if self.count > 1:
            with _report_lost_ranks():
                dist.all_reduce(values)

    def max(self, number: int) -> int:
        """The largest number of any rank."""
        if self.count == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        with _report_lost_ranks():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Added up name by name; a rank may lack some names, or all."""
        if self.count == 1:
            return dict(sums)
        every: list[Mapping[str, float]] = [{}] * self.count
        with _report_lost_ranks():
            dist.all_gather_object(every, dict(sums))
        total: dict[str, float] = {}
        for one in every:
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """A weight that no rank has a gradient of keeps none; where only some have one, the others count as zero."""
        if self.count == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        used = torch.tensor([weight.grad is not None for weight in trained], dtype=torch.uint8, device=self.device)
        with _report_lost_ranks():
            dist.all_reduce(used, dist.ReduceOp.MAX)
        for bucket in _buckets([weight for weight, is_used in zip(trained, used.tolist(), strict=True) if is_used]):
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.sum(flat)
            for weight, part in zip(bucket, flat.split([weight.numel() for weight in bucket]), strict=True):
                weight.grad = part.view_as(weight)

    def broadcast_weights(self, weights: Iterable[nn.Parameter]) -> None:
        """Weights become those of the first rank, in place."""
        if self.count > 1:
            with torch.no_grad(), _report_lost_ranks():
                for weight in weights:
                    dist.broadcast(weight.data, 0)

    def from_first(self, value: _T) -> _T:
        """What the first rank has given."""
        if self.count == 1:
            return value
        holder = [value]
        with _report_lost_ranks():
            dist.broadcast_object_list(holder, 0)
        return holder[0]

    def mesh(self) -> DeviceMesh:
        """Of all ranks, for torch's own ways of sharing."""
        with _report_lost_ranks():
            return init_device_mesh(self.device.type, (self.count,))

    def barrier(self) -> None:
        """Until all are here."""
        if self.count > 1:
            with _report_lost_ranks():
                dist.barrier()

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """The first rank goes ahead, so that the others find what it has downloaded or made; then each other in turn,
        so that what only passes through memory is there once."""
        for _ in range(self.rank):
            self.barrier()
        yield
        for _ in range(self.count - 1 - self.rank):
            self.barrier()

    def leave(self) -> None:
        """Once all are here they go their own ways; nothing is sum_by_section after that."""
        if self.count > 1:
            self.barrier()
            dist.destroy_process_group()


SINGLE_PROCESS = Ranks(0, 1, torch.device("cpu"))


def join_ranks(rank: int, count: int, rendezvous_file: Path, device: torch.device) -> Ranks:
    """Returns once all ranks have joined. They find each other by a file that isn't there before.

    They talk over the loopback interface, and no port is open to anyone else.
    """
    loopback = "lo" if os.path.exists("/sys/class/net/lo") else "lo0"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    # Each had as many threads as there are cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    on_gpu = device.type == "cuda"
    device = torch.device("cuda", 0) if on_gpu else device
    with _report_lost_ranks():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(rendezvous_file), count),  # type: ignore[attr-defined]
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
            device_id=device if on_gpu else None,
        )
    return Ranks(rank, count, device)


@contextlib.contextmanager
def _report_lost_ranks() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"The processes of this run have lost each other: {error}") from error


def _buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Few large sums are faster than many small ones. Each bucket is of one dtype."""
    bucket: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        if bucket and (size >= _BUCKET_BYTES or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(weight)
        size += weight.nbytes
    if bucket:
        yield bucket
