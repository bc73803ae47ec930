"""Data parallelism: the ranks, processes that train one model together, each on its share of a step's pairs.

Every rank holds the whole model (or a shard of each layer, see `sharding`), receives all pairs of a step and computes
some of them. Gradients, losses and metrics are summed over ranks, so all ranks take the same optimizer step and hold
the same values. transformers' Trainer does not know about ranks: DistributedDataParallel would average over processes
instead of pairs, and needs a forward pass through its wrapper and equal numbers of passes on all processes.
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

# The parent process ends all ranks if one exits, so a timeout is only needed as a last resort: a rank may be slow, for
# instance on a full disk.
_TIMEOUT = timedelta(days=7)
_BUCKET_BYTES = 64 * 2**20
_T = TypeVar("_T")


class LostRankError(TrainingError):
    """Another rank has exited. It is never the cause of a failure, which that rank reports."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, from 0, and the number of ranks.

    All ranks must call the same methods in the same order, except `share` and `seeded_for_step`. Each method raises
    LostRankError if another rank has exited.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that reports and writes files for all."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Return the indices of this rank's items, possibly none. Each rank gets about the same sum of sizes.

        Greedy: the largest item first, each to the rank with the smallest sum. All ranks compute the same division
        without communication. Example with 2 ranks and sizes 5, 4, 3, 2: rank 0 gets 5 and 2, rank 1 gets 4 and 3.
        """
        if self.count == 1:
            return list(range(len(sizes)))
        totals, mine = [0] * self.count, []
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            # Ties go to the lowest rank, so that all ranks agree.
            receiver = totals.index(min(totals))
            totals[receiver] += sizes[index]
            if receiver == self.rank:
                mine.append(index)
        return mine

    @contextlib.contextmanager
    def seeded_for_step(self, seed: int, step: int) -> Iterator[None]:
        """Seed the random number generators by seed, step and rank inside this context, and restore them afterwards.

        Dropout then does not depend on other consumers of random numbers, such as evaluations, checkpoints or a resume,
        and ranks drop different elements.
        """
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            # Distinct for fewer than 2^30 steps and 2^10 ranks.
            torch.manual_seed(((seed << 40) + (step << 10) + self.rank) % 2**63)
            yield

    def sum(self, values: Tensor) -> None:
        """Replace `values`, which have one shape on all ranks, by their sum over ranks, in place."""
        if self.count > 1:
            with _report_lost_ranks():
                dist.all_reduce(values)

    def max(self, number: int) -> int:
        """Return the largest number of any rank."""
        if self.count == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        with _report_lost_ranks():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the sum of each name over ranks. A rank without passes has no names."""
        if self.count == 1:
            return dict(sums)
        # Objects instead of tensors, since ranks may have different names.
        every: list[Mapping[str, float]] = [{}] * self.count
        with _report_lost_ranks():
            dist.all_gather_object(every, dict(sums))
        total: dict[str, float] = {}
        for one in every:
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Sum gradients over ranks. A missing gradient counts as zero; a weight without one on any rank keeps none."""
        if self.count == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        # A model with routed experts may leave a weight unused on some ranks; all must sum the same weights.
        used = torch.tensor([weight.grad is not None for weight in trained], dtype=torch.uint8, device=self.device)
        with _report_lost_ranks():
            dist.all_reduce(used, dist.ReduceOp.MAX)
        for bucket in _buckets([weight for weight, is_used in zip(trained, used.tolist(), strict=True) if is_used]):
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
            # One collective for a bucket, into one flat tensor; its views become the gradients.
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.sum(flat)
            for weight, part in zip(bucket, flat.split([weight.numel() for weight in bucket]), strict=True):
                weight.grad = part.view_as(weight)

    def broadcast_weights(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace weights by those of the first rank, in place."""
        if self.count > 1:
            with torch.no_grad(), _report_lost_ranks():
                for weight in weights:
                    dist.broadcast(weight.data, 0)

    def broadcast_from_first(self, value: _T) -> _T:
        """Return the first rank's value."""
        if self.count == 1:
            return value
        # Only the first rank's entry counts; the others' is overwritten.
        holder = [value]
        with _report_lost_ranks():
            dist.broadcast_object_list(holder, 0)
        return holder[0]

    def mesh(self) -> DeviceMesh:
        """Return the device mesh of all ranks, which torch needs for sharding."""
        with _report_lost_ranks():
            return init_device_mesh(self.device.type, (self.count,))

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.count > 1:
            with _report_lost_ranks():
                dist.barrier()

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Run the context on one rank after the other, beginning with the first.

        The other ranks find what the first has downloaded or written, and temporary memory is needed only once.
        """
        for _ in range(self.rank):
            self.barrier()
        yield
        for _ in range(self.count - 1 - self.rank):
            self.barrier()

    def leave(self) -> None:
        """Wait for all ranks and leave the process group. No other method may be called afterwards."""
        if self.count > 1:
            self.barrier()
            dist.destroy_process_group()


SINGLE_PROCESS = Ranks(0, 1, torch.device("cpu"))


def join_ranks(rank: int, count: int, rendezvous_file: Path, device: torch.device) -> Ranks:
    """Join the process group and return once all ranks have joined.

    The ranks rendezvous by a file, which must not exist before, and communicate over the loopback interface, so no port
    is open to other machines. Raises LostRankError if another rank exits before all have joined.
    """
    loopback = "lo" if os.path.exists("/sys/class/net/lo") else "lo0"
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    # By default each process starts as many threads as there are cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    # Each process sees one GPU only, as device 0.
    on_gpu = device.type == "cuda"
    device = torch.device("cuda", 0) if on_gpu else device
    with _report_lost_ranks():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(rendezvous_file), count),  # type: ignore[attr-defined]
            rank=rank,
            world_size=count,
            timeout=_TIMEOUT,
            device_id=device if on_gpu else None,
        )
    return Ranks(rank, count, device)


@contextlib.contextmanager
def _report_lost_ranks() -> Iterator[None]:
    try:
        yield
    # This is a RuntimeError as well, but not a lost connection; the memory probe handles it.
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostRankError(f"The connection between the processes of this run was lost: {error}") from error


def _buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group weights into buckets of one dtype, since few large sums are faster than many small ones."""
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
