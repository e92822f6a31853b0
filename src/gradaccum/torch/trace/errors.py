"""What stops a trace, and what is then said."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from gradaccum.errors import GradaccumError

LIBRARIES = (sysconfig.get_paths()["stdlib"], str(Path(__file__).parents[2]), "<")
"""Where no line of a person's own program is: Python's library, this package, code without a file."""


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
        super().__init__(message + line_of(cause))
        self.op = op
        self.module = module


def line_of(error: BaseException) -> str:
    """` (train.py, line 12)`: the last line of the person's own program on the way to an error; empty if there is none.

    Installed packages are nobody's own.
    """
    found, at = "", error.__traceback__
    while at is not None:
        path = at.tb_frame.f_code.co_filename
        if not path.startswith(LIBRARIES) and "site-packages" not in path:
            found = f" ({Path(path).name}, line {at.tb_lineno})"
        at = at.tb_next
    return found
