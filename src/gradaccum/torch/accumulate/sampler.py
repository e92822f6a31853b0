"""Batches in an order that does not depend on how it is cut: micro-batch, steps and ranks may change at a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradaccum.torch.accumulate.accumulator import Accumulator


class ResumableBatches(Sampler[list[int]]):
    """For `DataLoader(dataset, batch_sampler=...)`: one pass from `position` to the end of its epoch.

    The ranks together take micro_batch x world samples of one order at a time, so that an update takes the next
    effective batch of it, however that is made up. The last micro-step of an epoch is shared out, the first ranks one
    more; drop_last leaves it out, as sharded ranks need.

    num_samples: of the dataset. seed: with the epoch's number, of the order. rank, world: of the default process group
    where they are not given. position: samples that all ranks have consumed since the start of training.
    """

    def __init__(
        self,
        num_samples: int,
        micro_batch: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        drop_last: bool = False,
        position: int = 0,
    ) -> None:
        there = dist.is_initialized()
        self.rank = rank if rank is not None else dist.get_rank() if there else 0
        self.world = world if world is not None else dist.get_world_size() if there else 1
        if num_samples < 1 or micro_batch < 1 or not 0 <= self.rank < self.world:
            raise ValueError(
                f"{num_samples} samples in micro-batches of {micro_batch} for rank {self.rank} of {self.world}: each "
                "is at least 1, and the rank below the world"
            )
        self.num_samples, self.micro_batch = num_samples, micro_batch
        self.shuffle, self.seed, self.drop_last, self.position = shuffle, seed, drop_last, position
        self._over = False  # an open group has taken the last of its epoch, and makes its step before the next one

    def resume(self, accumulator: Accumulator) -> None:
        """Go on behind what the accumulator has consumed, an open group included. Raises ValueError where its batches
        did not say how many samples they have, and where an exact plan has cut those of several ranks.
        """
        samples = accumulator.progress.samples
        if samples is None:
            raise ValueError(
                "how many samples were consumed is not known: a batch did not say, groups(loader, count=...)"
            )
        consumed = accumulator.open_micro_batches * self.micro_batch * self.world
        if accumulator.cuts_batches:
            if self.world > 1:
                raise ValueError(
                    "an exact plan has cut the batches of several ranks, and what is left of each is no position in "
                    "one order: plan with rounding='round' where a run is to be restarted"
                )
            consumed = accumulator.open_samples or 0
        before, self.position = samples, min(samples + consumed, self._end(samples))
        self._over = consumed > 0 and self.position == self._end(before)

    def __len__(self) -> int:
        """Batches that are left for this rank in the epoch."""
        if self._over:
            return 0
        left = self.num_samples - self.position % self.num_samples
        whole, rest = divmod(left, self.micro_batch * self.world)
        return whole + (0 if self.drop_last else int(len(self._share(range(rest))) > 0))

    def __iter__(self) -> Iterator[list[int]]:
        if self._over:
            self._over = False
            return
        epoch, begun = divmod(self.position, self.num_samples)
        order = list(range(self.num_samples))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.num_samples, generator=generator).tolist()
        step = self.micro_batch * self.world
        for first in range(begun, self.num_samples, step):
            together = order[first : first + step]
            share = self._share(together)
            if share and not (self.drop_last and len(together) < step):
                yield list(share)
        self.position = self._end(self.position)

    def _end(self, position: int) -> int:
        """Of the epoch that this position is in."""
        return (position // self.num_samples + 1) * self.num_samples

    def _share(self, together: range | list[int]) -> range | list[int]:
        """This rank's part of one micro-step: equal parts, the first ranks one more."""
        size, more = divmod(len(together), self.world)
        first = self.rank * size + min(self.rank, more)
        return together[first : first + size + (self.rank < more)]
