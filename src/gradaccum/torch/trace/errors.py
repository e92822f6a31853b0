"""What stops a trace, and what is then said."""

from __future__ import annotations

from gradaccum.errors import GradaccumError


class TraceError(GradaccumError):
    """A step that cannot be followed. `op` and `module` say where; `op` is empty where the program itself raised."""

    def __init__(self, op: str, module: str, cause: BaseException) -> None:
        where = f" in the module {module!r}" if module else ""
        said = f"{type(cause).__name__}: {str(cause).strip().split(chr(10))[0]}"
        if not op:
            message = f"the step raised{where}: {said}"
        elif isinstance(cause, NotImplementedError):
            message = (
                f"{op}{where} has no rule for shapes alone (no meta kernel), so what it allocates is not known. "
                f"torch.library.register_fake adds one. {said}"
            )
        else:
            message = f"{op}{where} could not be run on shapes alone: {said}"
        super().__init__(message)
        self.op = op
        self.module = module
