"""What the meta device stands for: which device, and in what its operators differ from what the meta device does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    Kernel = Callable[[Any, Any, Any], tuple[Sequence[int], Sequence[int]]]
    """Arguments, keyword arguments and result of an operator; the bytes of the buffers that it allocates before its
    results, and of those after. All of them are freed when it returns, the youngest first."""


class Recording(Protocol):
    """What a rule may ask of the recorder, and tell it."""

    answers: dict[str, Any]

    def maker(self, tensor: Any) -> str:
        """The operator that made a tensor's storage, such as `aten.all`; empty where it is not known."""

    def made_by(self, tensor: Any, op: str) -> None:
        """From now on this operator counts as what made the tensor's storage."""

    def see(self, out: Any, op: str) -> None:
        """What is new in the tensors of a result is born."""

    def guess(self, op: str, what: str, most: int = 0) -> None:
        """Something could not be seen, and this is what was done instead; `most` bytes may be uncounted."""

    def assume(self, op: str, value: object) -> None:
        """The program was answered this value."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device profile. Operators are named without their overload: `aten.mm`.

    types: the kinds of torch device whose storages count.
    replaced: operators that are answered by a function of (recorder, func, args, kwargs) instead of being called.
    kernels: the buffers inside an operator's kernel.
    workspaces: for each product of matrices, the libraries that ask for a workspace, in order, and its bytes.
    unknown: operators whose kernel allocates an amount that no rule is known for, and why.
    unknown_modules: kinds of module that become one such operator, which the meta device splits up.
    patches: makes the context in which torch itself behaves as on this device.
    """

    name: str
    types: frozenset[str]
    replaced: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    workspaces: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    unknown_modules: Mapping[type, tuple[str, str]] = field(default_factory=dict)
    patches: Callable[[], AbstractContextManager[object]]
