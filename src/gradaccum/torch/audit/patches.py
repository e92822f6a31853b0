"""Functions of torch with ours around them, for as long as somebody watches."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Patches:
    """Attributes that were replaced, and what they were."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def around(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Let `wrapper(original, *args, **kwargs)` stand in for `owner.name`."""
        original = vars(owner)[name]

        @functools.wraps(original)
        def instead(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        self._before.append((owner, name, original))
        setattr(owner, name, instead)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._before:
            setattr(*self._before.pop())
