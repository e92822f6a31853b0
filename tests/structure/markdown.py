"""What README.md and docs/*.md promise, read from their text: fenced blocks, sessions, and paths of the project."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#?\s]+)[^)]*\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
TOP = r"(?:\.ci|benchmarks|docs|examples|src|tests)/[\w./*-]*|Makefile|LICENSE|pyproject\.toml|constraints\.txt"


@dataclass(frozen=True)
class Command:
    """A line of a session and the lines that the page shows below it."""

    line: str
    shown: str


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages, in order."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def session(block: str) -> list[Command]:
    """A `console` block: after each `$ command` comes what it prints. A backslash continues the line."""
    commands: list[Command] = []
    continued = False
    for line in block.splitlines():
        if continued:
            commands[-1] = Command(f"{commands[-1].line}\n{line}", "")
        elif line.startswith("$ "):
            commands.append(Command(line[2:], ""))
        elif commands:
            commands[-1] = Command(commands[-1].line, f"{commands[-1].shown}{line}\n")
        continued = bool(commands) and not commands[-1].shown and line.endswith("\\")
    return commands


def script(block: str) -> list[Command]:
    """An `sh` block: commands without a prompt, whose output is not shown; comments are left out."""
    joined = block.replace("\\\n", "\\\0")
    lines = (line.replace("\0", "\n").removeprefix("$ ") for line in joined.splitlines())
    return [Command(line, "") for line in lines if line.strip() and not line.startswith("#")]


def run(commands: list[Command], folder: Path, environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """What each command prints (both streams) and its exit code; all of one block run in one shell."""
    mark = "----8<----"
    # `$?` stays what the command left, so that a page may show `echo $?`.
    told = "\n".join(f"{command.line}\n_code=$?; echo; echo '{mark}' $_code; (exit $_code)" for command in commands)
    shell = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{told}"], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )
    parts = re.split(rf"\n{mark} (\d+)\n", shell.stdout)
    return [(out, int(code)) for out, code in zip(parts[0::2], parts[1::2], strict=False)]


def same(printed: str, shown: str) -> bool:
    """Whether this is the output that the page shows; a line `...` there stands for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"[ \t]*\n" for line in shown.rstrip().splitlines()
    )
    return re.fullmatch(pattern, printed.rstrip() + "\n" if printed.strip() else "") is not None


def renewed(text: str, command: Command, printed: str) -> str:
    """The text with what this command prints now below it; left alone where a line `...` shortens it."""
    if not command.shown or "..." in command.shown.splitlines():
        return text
    return text.replace(f"$ {command.line}\n{command.shown}", f"$ {command.line}\n{printed.rstrip()}\n")


def paths(text: str) -> set[str]:
    """The files and folders that the text names: links, and code spans that begin with one of ours."""
    prose = FENCE.sub("", text)
    links = {link for link in LINK.findall(prose) if not re.match(r"[a-z]+:", link)}
    spans = {span for span in CODE_SPAN.findall(prose) if re.fullmatch(TOP, span)}
    return links | spans
