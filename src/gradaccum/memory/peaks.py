"""The peaks of a tape: how many bytes are there at each moment of its forward pass, and of its backward pass.

Forward, a tensor dies behind its last use unless autograd keeps it. Backward, the operations run in reverse; each has
the gradient of its result, makes those of its inputs, and lets go what it alone had kept. Gradients of a tensor that
was used twice are added up, those of parts of a tensor put together (torch/csrc/autograd/engine.cpp, input_buffer.cpp).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gradaccum.memory.tape import Operation, Storage, Tape, Tensor


class Moment:
    """Bytes at one moment. kept: for the backward pass; moving: all else. Of one sequence, and fixed ones."""

    __slots__ = ("kept", "kept_fixed", "moving", "moving_fixed")  # there are hundreds: no dataclass

    def __init__(self, kept: int, kept_fixed: int, moving: int, moving_fixed: int) -> None:
        self.kept = kept
        self.kept_fixed = kept_fixed
        self.moving = moving
        self.moving_fixed = moving_fixed

    def bytes(self, sequences: int) -> int:
        """The sum for so many sequences."""
        return (self.kept + self.moving) * sequences + self.kept_fixed + self.moving_fixed


def highest(moments: Iterable[Moment]) -> tuple[Moment, ...]:
    """Those that are the highest for some number of sequences: each next one grows slower, and has more fixed bytes."""
    found: list[Moment] = []
    left = [(each.kept + each.moving, each.kept_fixed + each.moving_fixed, each) for each in moments]
    while left:
        steepest = max([slope for slope, _, _ in left])
        fixed, best = max([(fixed, place) for place, (slope, fixed, _) in enumerate(left) if slope == steepest])
        found.append(left[best][2])
        left = [each for each in left if each[1] > fixed]
    return tuple(found)


class _Count:
    """A running sum of storages, each counted once while someone holds it."""

    def __init__(self, without: Collection[int]) -> None:
        self.without = without
        self.holders: dict[int, int] = {}
        self.bytes = 0
        self.fixed = 0

    def hold(self, storage: Storage) -> None:
        if id(storage) in self.without:
            return
        holders = self.holders.get(id(storage), 0)
        self.holders[id(storage)] = holders + 1
        if not holders:
            self.bytes += storage.bytes
            self.fixed += storage.fixed

    def release(self, storage: Storage) -> None:
        if id(storage) in self.without:
            return
        self.holders[id(storage)] -= 1
        if not self.holders[id(storage)]:
            self.bytes -= storage.bytes
            self.fixed -= storage.fixed


def forward(tape: Tape, without: Collection[int] = (), held: Collection[Storage] = ()) -> list[Moment]:
    """The moments of the forward pass. without: storages, by id, that are counted elsewhere; held: kept by others."""
    last: dict[int, int] = {}
    saved = {id(storage) for storage in held}
    for place, operation in enumerate(tape.operations):
        for tensor in operation.inputs:
            last[id(tensor.storage)] = place
        saved.update(id(storage) for storage in operation.saved)
    kept, moving, found = _Count(without), _Count(without), []
    for place, operation in enumerate(tape.operations):
        output = operation.output.storage
        for storage in operation.saved:
            if id(storage) not in kept.holders:
                kept.hold(storage)
        if id(output) not in saved and id(output) not in moving.holders:
            moving.hold(output)
        elif id(output) in saved and id(output) not in kept.holders:
            kept.hold(output)
        found.append(
            Moment(kept.bytes, kept.fixed, moving.bytes + operation.forward, moving.fixed + operation.forward_fixed)
        )
        for tensor in operation.inputs:
            storage = tensor.storage
            if last[id(storage)] == place and moving.holders.get(id(storage)):
                moving.release(storage)
    return found


class _Gradient:
    """One gradient's memory, which several tensors may share."""

    __slots__ = ("bytes", "users")

    def __init__(self, count: int) -> None:
        self.bytes = count
        self.users = 0


class Backward:
    """The backward pass over a tape. `moments`: what was there as each operation ran."""

    def __init__(self, tape: Tape, without: Collection[int] = (), held: Collection[Storage] = ()) -> None:
        self.tape = tape
        self.kept = _Count(without)
        self.flowing = 0
        self.gradients: dict[int, list[tuple[_Gradient, bool]]] = {}
        self.moments: list[Moment] = []
        for storage in held:
            self.kept.hold(storage)
        for operation in tape.operations:
            for storage in operation.saved:
                self.kept.hold(storage)

    def run(self, output: Tensor) -> list[Moment]:
        """From the gradient of `output` to that of the input."""
        self._arrive(output, _Gradient(output.bytes), whole=True)
        for operation in reversed(self.tape.operations):
            arrived = self.gradients.pop(id(operation.output), None)
            if arrived is not None:
                self._step(operation, arrived)
            for storage in operation.saved:
                self.kept.release(storage)
        return self.moments

    def _step(self, operation: Operation, arrived: list[tuple[_Gradient, bool]]) -> None:
        gradient = self._whole(operation.output, arrived)
        wanting = [each for each in operation.inputs if each.grad]
        if not operation.view and not operation.through:
            made = [(each, _Gradient(each.bytes)) for each in wanting]
            broadcast = any(each.bytes < gradient.bytes for each in wanting) and len(operation.inputs) > 1
            extra = operation.back + (gradient.bytes if broadcast else 0)
            self._note(extra + sum([new.bytes for _, new in made]), operation.back_fixed)
            for each, new in made:
                self._arrive(each, new, whole=True)
        else:
            for each in wanting:
                if operation.view:
                    self._arrive(each, gradient, whole=each.bytes == gradient.bytes)
                elif each.width == operation.output.width:
                    self._arrive(each, gradient, whole=True)
                else:
                    self._arrive(each, _Gradient(each.bytes), whole=True)
            self._note(operation.back, operation.back_fixed)
        self._leave(gradient)

    def _whole(self, tensor: Tensor, arrived: list[tuple[_Gradient, bool]]) -> _Gradient:
        """One gradient of what arrived: parts are put together in a new one."""
        if len(arrived) == 1 and arrived[0][1]:
            return arrived[0][0]
        whole = _Gradient(tensor.bytes)
        whole.users = 1
        self.flowing += whole.bytes
        self._note(0, 0)
        for part, _ in arrived:
            self._leave(part)
        return whole

    def _arrive(self, tensor: Tensor, gradient: _Gradient, whole: bool) -> None:
        if not gradient.users:
            self.flowing += gradient.bytes
        gradient.users += 1
        there = self.gradients.setdefault(id(tensor), [])
        if whole and there and there[0][1]:
            first, _ = there[0]
            if first.users > 1:  # shared, so that the sum is a new one
                total = _Gradient(first.bytes)
                total.users = 1
                self.flowing += total.bytes
                self._note(0, 0)
                self._leave(first)
                there[0] = total, True
            else:
                self._note(0, 0)
            self._leave(gradient)
            return
        there.append((gradient, whole))

    def _leave(self, gradient: _Gradient) -> None:
        gradient.users -= 1
        if not gradient.users:
            self.flowing -= gradient.bytes

    def _note(self, extra: int, fixed: int) -> None:
        self.moments.append(Moment(self.kept.bytes, self.kept.fixed, self.flowing + extra, fixed))
