"""What is to be audited, as the words of a command that can be started: a script, a module, or a command of its own."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from gradaccum.errors import InputError, MissingExtraError, Problem, nearest_words

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = ("gradaccum audit train.py", "gradaccum audit -m package.train", "gradaccum audit -- torchrun train.py")

SHUTS_US_OUT = {"I": "is deaf to the environment", "E": "is deaf to the environment", "S": "skips what runs at a start"}
"""Python's own flags under which a process cannot be entered."""


def command_of(words: Sequence[str]) -> list[str]:
    """From what stands behind our flags: `train.py ...`, `-m module ...` or `-- command ...`.

    Raises InputError for what cannot be started, and MissingExtraError where this Python would start it without torch.
    """
    if not words:
        raise InputError(Problem("", "name what to audit: a script, -m and a module, or -- and a command", EXAMPLES))
    first, *rest = words
    if first == "--":
        return _command(rest)
    if first.startswith("-m"):
        name, *arguments = [first[2:], *rest] if first != "-m" else rest or [""]
        _check_module(name)
        return [*_python(), "-m", name, *arguments]
    _check_script(first)
    return [*_python(), *words]


def _python() -> list[str]:
    """This Python, which has to have torch."""
    if importlib.util.find_spec("torch") is None:
        what = f"gradaccum audit, with {sys.executable} (-- before the command lets it name its own python),"
        raise MissingExtraError(what, "torch", "torch")
    return [sys.executable]


def _check_script(name: str) -> None:
    path = Path(name)
    if not path.exists():
        if shutil.which(name):
            raise InputError(Problem("", f"there is no file {name}; a command stands behind --", [f"-- {name}"]))
        scripts = [str(each) for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(Problem("", f"there is no file {name}", nearest_words(name, scripts)))
    if path.is_dir() and not (path / "__main__.py").exists():
        scripts = sorted(str(each) for each in path.glob("*.py"))[:3]
        raise InputError(Problem("", f"{name} is a folder without a __main__.py; name its script", scripts))
    line = _first_line(path)
    if line.startswith("#!") and "python" not in line:
        raise InputError(Problem("", f"{name} is no Python script; a command stands behind --", [f"-- {name}"]))


def _check_module(name: str) -> None:
    """Look where Python would, importing nothing: the folder of this shell comes first."""
    if not name:
        raise InputError(Problem("", "-m wants the name of a module", ["-m package.train"]))
    if name.endswith(".py"):
        raise InputError(Problem("", f"-m wants the name of a module, and {name} is a file", [name]))
    path = [str(Path.cwd()), *sys.path]
    known = ""
    for part in [*name.split("."), "__main__"]:
        found = PathFinder.find_spec(f"{known}.{part}" if known else part, path)
        if found is None and not known:
            found = importlib.util.find_spec(part)  # as an editable installation adds it
        if found is None and part == "__main__":
            raise InputError(Problem("", f"the module {name} is a package without a __main__", [f"-m {name}.train"]))
        if found is None:
            where = f" in {known}" if known else ""
            near = nearest_words(part, [each.stem for each in Path(path[0]).glob("*") if each.suffix in ("", ".py")])
            names = [f"-m {known}.{each}" if known else f"-m {each}" for each in near]
            raise InputError(Problem("", f"there is no module {part}{where}", names))
        if found.submodule_search_locations is None:
            return  # a file: what is asked for, or Python says that it is no package
        known, path = f"{known}.{part}" if known else part, list(found.submodule_search_locations)


def _command(words: Sequence[str]) -> list[str]:
    if not words:
        raise InputError(Problem("", "-- wants a command behind it", EXAMPLES[-1:]))
    program, beside = words[0], Path(sys.executable).parent
    if shutil.which(program) is None:
        if Path(program).is_file():
            raise InputError(Problem("", f"{program} is no command; a script stands there without --", [program]))
        here = [str(beside / program)] if (beside / program).exists() else []
        near = here or nearest_words(program, [each.name for each in beside.iterdir()])
        raise InputError(Problem("", f"there is no command {program}", [f"-- {each}" for each in near]))
    if shut := shut_out(words):
        flag = shut[-1]
        rest = " ".join(word for word in words if word != flag)
        said = f"{' '.join(shut)} {SHUTS_US_OUT[_letter(flag)]}, so that it cannot be audited; leave {flag} out"
        if shut[0] == program:
            raise InputError(Problem("", said, [f"-- {rest}"]))
    return list(words)


def shut_out(words: Sequence[str]) -> tuple[str, str] | None:
    """The first Python among the words that cannot be entered, and the flag because of which: `("python", "-I")`."""
    for index, word in enumerate(words):
        if re.fullmatch(r"python[\d.]*(\.exe)?", Path(word).name):
            for flag in words[index + 1 :]:
                if not flag.startswith("-") or flag[1:2] in ("m", "c", "-"):
                    break
                if _letter(flag):
                    return word, flag
    return None


def _letter(flag: str) -> str:
    """Of `-uI`, the letter that shuts us out; "" where none does. What follows -W or -X is a value."""
    return next((each for each in re.split("[WX]", flag)[0] if each in SHUTS_US_OUT), "")


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.readline(200).decode("utf-8", "replace")
