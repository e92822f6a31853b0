"""Inside a process of an audited command: watch it, write down what was seen, and end the run once that is enough.

Every process that imports torch has a session; only one that saw an optimizer's step leaves a record. The record is
written anew while the run goes on, so that a process that is killed has left what it saw.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.util
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gradaccum.torch.audit.patches import Patches
from gradaccum.torch.audit.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.audit.records import UpdateSeen

WANTED = "wanted.json"
"""What is asked of the processes, in the audit's folder."""


@dataclass(frozen=True)
class Wanted:
    """updates: after how many of each optimizer the run ends. batches: what a loader gives in an epoch at most.
    patience: seconds to wait for the other ranks, and grace: for the script's own end, before the process is ended.
    """

    updates: int
    target_batch: int | None = None
    batches: int | None = None
    patience: float = 20.0
    grace: float = 60.0


class Stop(SystemExit):
    """Raised in the script's main line once enough was seen: an exit like its own, with code 0."""


def begin(folder: str) -> Session:
    """Watch this process to its end. Called as soon as torch is whole."""
    session = Session(Path(folder), Wanted(**json.loads(Path(folder, WANTED).read_text(encoding="utf-8"))))
    session.start()
    sessions.append(session)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=session.forked)
    multiprocessing.util.register_after_fork(session, Session.write_at_end_of_child)
    return session


def end() -> None:
    """The interpreter is about to end."""
    for each in sessions:
        each.end()


sessions: list[Session] = []


class Session:
    """One process. folder: where all of the audit's processes leave their records."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder, self.wanted = folder, wanted
        self.cut = Patches()
        self._fresh()

    def _fresh(self) -> None:
        self.process, self.began = os.getpid(), time.time()
        self.watcher = Watcher(updates=None, target_batch=self.wanted.target_batch, on_update=self._updated)
        self.enough = self.stopped = False
        self._ends = Patches()
        self._counts: dict[int, int] = {}
        self._thread = 0
        self._next_write = 0.0
        self._was_cut = self._ends_by_itself = False

    def start(self) -> None:
        """Begin to watch, and cut the loaders where that is wanted."""
        self.watcher.start()
        if self.wanted.batches is not None:
            self.cut.around(_BaseDataLoaderIter, "__next__", self._next_batch)
            for kind in (DataLoader, _BaseDataLoaderIter):
                self.cut.around(kind, "__len__", self._length)

    def forked(self) -> None:
        """This process is a fork of a watched one: what that saw is not this one's."""
        self.watcher.stop()
        self._ends.undo()
        self._fresh()
        self.watcher.start()

    def write_at_end_of_child(self) -> None:
        """A child that multiprocessing made runs multiprocessing's finalizers, and no others."""
        multiprocessing.util.Finalize(None, self._write, (True,), exitpriority=0)

    def end(self) -> None:
        """Write what was seen. A run that was stopped ends here, with 0 whatever it made of being stopped."""
        if os.getpid() == self.process:
            self._write(ended=True)
            if self.stopped:
                self._leave()

    # An update was made

    def _updated(self, update: UpdateSeen) -> None:
        self._thread = threading.get_ident()
        if not update.skipped:
            self._counts[update.optimizer] = self._counts.get(update.optimizer, 0) + 1
        self._place()
        if self._counts and min(self._counts.values()) >= self.wanted.updates and not self.enough:
            self.enough = True
            self._write()
            self._end_soon()
        elif time.monotonic() >= self._next_write:
            began = time.monotonic()
            self._write()
            self._next_write = time.monotonic() + 20 * (time.monotonic() - began)  # a twentieth of the time at most

    def _place(self) -> None:
        """The rank, while there is a process group: it may be gone at the end."""
        seen = self.watcher.so_far()
        if not (dist.is_available() and dist.is_initialized()):
            world = os.environ.get("WORLD_SIZE", "")
            if world.isdigit() and os.environ.get("RANK", "").isdigit():
                seen.rank, seen.world = int(os.environ["RANK"]), int(world)

    def _write(self, ended: bool = False) -> None:
        """The record, at once or not at all; none where no step was seen."""
        seen = self.watcher.so_far()
        if not seen.updates or os.getpid() != self.process:
            return
        record = {
            "began": self.began,
            "enough": self.enough,
            "stopped": self.stopped,
            "cut": self._was_cut,
            "whole": self._ends_by_itself,
            "ended": ended,
            "seen": seen.to_dict(),
        }
        part = self.folder / f"{self.process}.part"
        try:
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(self.folder / f"{self.process}.json")
            if self.enough:
                (self.folder / f"{seen.rank}.{'stopped' if self.stopped else 'enough'}").touch()
        except OSError:  # the folder is gone with the audit that made it
            pass

    # Enough was seen

    def _end_soon(self) -> None:
        """End the run at the next thing that it does: take a batch, or go backward. Every rank comes to the same."""
        self._around_what_comes_next()
        hook, in_thread = sys.excepthook, threading.excepthook
        sys.excepthook = lambda kind, value, trace: None if self._ours(value) else hook(kind, value, trace)
        threading.excepthook = lambda args: None if self._ours(args.exc_value) else in_thread(args)
        threading.Thread(target=self._end_late, daemon=True).start()

    def _around_what_comes_next(self) -> None:
        self._ends.around(torch.autograd, "backward", self._halt)
        self._ends.around(_BaseDataLoaderIter, "__next__", self._halt)

    def _halt(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == self._thread and (self.stopped or self._all_have_enough()):
            if not self.stopped:
                self.stopped = True
                self._ends.undo()
                self.watcher.stop()
                self._write()
                self._around_what_comes_next()  # again, for a script that catches everything
            raise Stop(0)
        return original(*args, **kwargs)

    def _all_have_enough(self) -> bool:
        """Whether all ranks of this machine come to the end as well; the others would wait for one that is gone."""
        last = time.monotonic() + self.wanted.patience
        while len(list(self.folder.glob("*.enough"))) < self._ranks_here():
            if time.monotonic() > last:
                self._ends.undo()
                self.watcher.updates = 0  # the run goes on, and more of it need not be audited
                return False
            time.sleep(0.02)
        return True

    def _ranks_here(self) -> int:
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        world = self.watcher.seen.world
        return min(world, int(local)) if local.isdigit() else world

    def _end_late(self) -> None:
        """A script that does something long, or waits for a rank that is gone, is ended after a while."""
        time.sleep(self.wanted.grace)
        if os.getpid() == self.process and (self.stopped or self._all_have_enough()):
            self.stopped = True
            self._write(ended=True)
            self._leave()

    def _ours(self, error: BaseException | None) -> bool:
        """Whether it comes from the stop: raised while that was handled, or since another rank has left."""
        chain = error
        while chain is not None and not isinstance(chain, Stop):
            chain = chain.__cause__ or chain.__context__
        self.stopped |= chain is not None or any(self.folder.glob("*.stopped"))
        return self.stopped

    def _leave(self) -> None:
        if threading.current_thread() is threading.main_thread() and dist.is_available() and dist.is_initialized():
            with contextlib.suppress(Exception):  # the others may be gone
                dist.destroy_process_group()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
                stream.flush()
        os._exit(0)

    # The epoch is cut

    def _next_batch(self, original: Callable[..., Any], iterator: Any) -> Any:
        assert self.wanted.batches is not None
        if iterator._num_yielded == 0:
            self._ends_by_itself |= self._is_short(iterator)
        if iterator._num_yielded >= self.wanted.batches:
            self._was_cut |= not self._is_short(iterator)
            raise StopIteration
        try:
            return original(iterator)
        except StopIteration:
            self._ends_by_itself = True
            raise

    def _is_short(self, iterator: Any) -> bool:
        """Whether an epoch has no more batches than are wanted."""
        try:
            return len(iterator._index_sampler) <= (self.wanted.batches or 0)
        except TypeError:  # it has no length
            return False

    def _length(self, original: Callable[..., int], loader: Any) -> int:
        assert self.wanted.batches is not None
        length = original(loader)
        self._was_cut |= length > self.wanted.batches
        return min(length, self.wanted.batches)
