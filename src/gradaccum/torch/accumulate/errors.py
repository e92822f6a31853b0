"""What goes wrong in an accumulating loop, said with what to do about it."""

from __future__ import annotations

from gradaccum.errors import GradaccumError


class AccumulationError(GradaccumError):
    """A loop breaks the rules of its group, or asks for what cannot be right. The message says what to do."""
