"""What stops a trace, and what is then said."""

from __future__ import annotations

from gradaccum.errors import GradaccumError


class TraceError(GradaccumError):
    """An operator that the meta device cannot follow, or a module that raised. `op` and `module` say where."""

    def __init__(self, op: str, module: str, cause: BaseException) -> None:
        where = f" in the module {module!r}" if module else ""
        said = str(cause).strip().split("\n")[0]
        kernel = isinstance(cause, NotImplementedError)
        reason = "has no rule for shapes alone (no meta kernel)" if kernel else "could not be followed without data"
        super().__init__(
            f"{op}{where} {reason}: {type(cause).__name__}: {said}. "
            "Register a meta kernel for it (torch.library.register_fake), or trace the module without it."
        )
        self.op = op
        self.module = module
