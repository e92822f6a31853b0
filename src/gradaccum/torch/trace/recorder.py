"""Watching a training step on the meta device: which storages are born, which die, and in what order.

Every operator that reaches a device passes a TorchDispatchMode. A storage that one of its results holds, and that was
not seen before, is born there; a weak reference tells when it dies, and as the program is the person's own, it dies
where it would on a GPU. Inside an operator the mode sees nothing: what a CUDA kernel allocates for itself alone comes
from the table of the device profile (kernels.py).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradaccum.torch.trace import events as ev
from gradaccum.torch.trace import everywhere, unseen
from gradaccum.torch.trace.answers import answer_for, is_question
from gradaccum.torch.trace.errors import TraceError
from gradaccum.torch.trace.fanout import adds_in_place, last_reference, twice_the_same

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradaccum.torch.trace.device import Device, Kernel
    from gradaccum.torch.trace.where import Where

# What creates a loss: from there to the next module's forward, or to backward, the step is in its loss phase.
LOSS_OPS = frozenset(
    "_log_softmax nll_loss_forward nll_loss2d_forward mse_loss binary_cross_entropy smooth_l1_loss huber_loss "
    "binary_cross_entropy_with_logits xlogy soft_margin_loss multi_margin_loss multilabel_margin_loss_forward".split()
)

_ADD, _ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


class _Facts(NamedTuple):
    """What the recorder knows of an operator, looked up once for each."""

    name: str
    replace: Callable[..., Any] | None
    kernel: Kernel | None
    matmul: bool
    silent: bool
    resizes: bool
    loss: bool
    unknown: str | None


class _Birth(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows its block."""

    __slots__ = ("block", "bytes", "key", "node")
    block: int
    bytes: int
    key: int
    node: int


class Recorder(TorchDispatchMode):
    """Writes blocks and events while it is entered. `device` says what the meta device stands for."""

    def __init__(self, device: Device, where: Where, answers: dict[str, Any]) -> None:
        super().__init__()
        self.device = device
        self.where = where
        self.answers = answers
        self.blocks: list[list[Any]] = []
        self.events: list[int] = []
        self.emptied: list[int] = []
        self.marks: list[ev.Mark] = []
        self.unknown: dict[ev.Guess, int] = {}
        self.assumed: dict[ev.Guess, None] = {}
        self.live: dict[int, _Birth] = {}
        self.facts: dict[Any, _Facts] = {}
        self.update = self.micro_step = 0
        self.phase = ""
        self.workspaces: set[str] = set()
        self.alone = last_reference()
        # The callback of a weak reference may come when the recorder is gone; it then finds an empty list.
        live, written = self.live, self.events

        def died(birth: _Birth) -> None:
            if live.get(birth.key) is birth:
                del live[birth.key]
                written.append(~birth.block)

        self._died = died

    # What the mode sees

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        facts = self.facts.get(func)
        if facts is None:
            facts = self.facts[func] = self._facts(func)
        kwargs = kwargs or {}
        if facts.silent:
            return func(*args, **kwargs)
        if func is _ADD and self._engine_adds(args):
            func, facts = _ADD_IN_PLACE, self.facts.get(_ADD_IN_PLACE) or self._facts(_ADD_IN_PLACE)
        phase = self.where.phase()
        if facts.loss and phase == ev.FORWARD:
            self.where.outside = phase = ev.LOSS
        if phase != self.phase:
            self.mark(phase)
        try:
            out = facts.replace(self, func, args, kwargs) if facts.replace else func(*args, **kwargs)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise TraceError(facts.name, self.where.module(), error) from error
        if facts.unknown is not None:
            self.guess(facts.name, facts.unknown, unseen.most(facts.name, args, kwargs, out))
        if facts.resizes:
            self._resized(args, kwargs)
        if facts.kernel is not None:
            before, inside = facts.kernel(args, kwargs, out)
            buffers = [self.born(size, ev.KERNEL, facts.name) for size in before if size]
            self.see(out, facts.name)
            buffers += [self.born(size, ev.KERNEL, facts.name) for size in inside if size]
            self.events += [~block for block in reversed(buffers)]
        else:
            self.see(out, facts.name)
        if facts.matmul:
            self._workspace(facts.name)
        return out

    def _engine_adds(self, args: Any) -> bool:
        """Whether this sum is the autograd engine's, and would be made in place (fanout.py)."""
        if not adds_in_place(args, self.alone):
            return False
        node = torch._C._current_autograd_node()
        birth = self.live.get(args[0].untyped_storage()._cdata)
        return birth is not None and (birth.node != id(node) or twice_the_same(node))

    def _facts(self, func: Any) -> _Facts:
        packet, _, overload = str(func).rpartition(".")
        bare = packet.rpartition(".")[2]
        mutable = func._schema.is_mutable
        view = func.is_view and not mutable
        device = self.device
        return _Facts(
            name=packet,
            replace=answer_for(func) or device.replaced.get(packet) or everywhere.REPLACED.get(packet),
            kernel=device.kernels.get(packet) or everywhere.KERNELS.get(packet),
            matmul=packet in device.workspaces,
            silent=(view and not is_question(func)) or func.namespace == "profiler",
            resizes=mutable and (overload == "out" or overload.endswith("_out") or bare in {"resize_", "set_"}),
            loss=bare in LOSS_OPS,
            unknown=device.unknown.get(packet),
        )

    def see(self, out: Any, op: str) -> None:
        """What is new in the tensors of a result is born."""
        if isinstance(out, torch.Tensor):
            self.see_tensor(out, op)
        elif isinstance(out, (tuple, list)):
            for each in out:
                self.see(each, op)

    def see_tensor(self, tensor: torch.Tensor, op: str) -> int | None:
        """The block of a tensor of the traced device; None for what lies elsewhere, or has no storage."""
        if tensor.device.type not in self.device.types or tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage()
        birth = self.live.get(storage._cdata)
        if birth is not None:
            return birth.block
        size = storage.nbytes()
        if not size:
            return None
        kind = ev.ACTIVATION if self.phase in {ev.FORWARD, ev.LOSS, ev.RECOMPUTE} else ev.TEMPORARY
        block = self.born(size, kind if self.phase != ev.SETUP else ev.OTHER, op)
        self._watch(storage, block, size)
        return block

    def _watch(self, storage: Any, block: int, size: int) -> None:
        birth = _Birth(storage, self._died)
        birth.block, birth.bytes, birth.key = block, size, storage._cdata
        node = torch._C._current_autograd_node()
        birth.node = id(node) if node is not None else 0
        self.live[birth.key] = birth

    def _resized(self, args: Any, kwargs: Any) -> None:
        """An `out=` that did not fit, `resize_` and `set_`: the old bytes go, and new ones come."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                birth = self.live.get(value.untyped_storage()._cdata)
                if birth is not None and birth.bytes != value.untyped_storage().nbytes():
                    # The storage grows: at::native::resize_bytes allocates, copies, and then frees.
                    del self.live[birth.key]
                    self.see_tensor(value, "aten.resize_")
                    self.events.append(~birth.block)

    # What is written

    def born(self, size: int, kind: str, op: str, name: str = "") -> int:
        """The number of a new block, whose birth is the next event."""
        block = len(self.blocks)
        self.blocks.append([size, kind, self.phase, op, self.where.module(), name])
        self.events.append(block)
        return block

    def mark(self, phase: str) -> None:
        """From here on the step is in another phase."""
        self.phase = phase
        self.marks.append(ev.Mark(len(self.events), phase, self.update, self.micro_step))

    def empty_cache(self) -> None:
        """The program gives what is cached back to the device; for `torch.cuda.empty_cache`."""
        self.emptied.append(len(self.events))

    def name(self, tensor: Any, kind: str, name: str) -> None:
        """Say what a tensor that was seen is, now that it shows."""
        if isinstance(tensor, torch.Tensor):
            birth = self.live.get(tensor.untyped_storage()._cdata)
            if birth is not None:
                block = self.blocks[birth.block]
                block[1], block[5] = kind, name

    def guess(self, op: str, what: str, most: int = 0) -> None:
        """Note something that this trace could not see. most: the bytes that it may allocate uncounted."""
        guess = ev.Guess(op, self.where.module(), what)
        self.unknown[guess] = max(most, self.unknown.get(guess, 0))

    def assume(self, op: str, value: object) -> None:
        """Note a value that the program was answered."""
        self.assumed[ev.Guess(op, self.where.module(), repr(value))] = None

    def maker(self, tensor: torch.Tensor) -> str:
        """The operator that made a tensor's storage, such as `aten.all`; empty where it is not known."""
        birth = self.live.get(tensor.untyped_storage()._cdata)
        return self.blocks[birth.block][3] if birth is not None else ""

    def made_by(self, tensor: torch.Tensor, op: str) -> None:
        """From now on this operator counts as what made the tensor's storage."""
        birth = self.live.get(tensor.untyped_storage()._cdata)
        if birth is not None:
            self.blocks[birth.block][3] = op

    def _workspace(self, op: str) -> None:
        """Each thread's first product of matrices asks for a workspace, after its result, and keeps it."""
        thread = "backward" if self.phase in {ev.BACKWARD, ev.RECOMPUTE} else "forward"
        for library, size in self.device.workspaces[op].items():
            if (key := f"{library} of the {thread} thread") not in self.workspaces:
                self.workspaces.add(key)
                self.born(size, ev.WORKSPACE, op, key)
