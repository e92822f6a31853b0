"""README.md and docs/*.md say what is true.

Their commands print what they show, their Python runs, and the paths that they name exist.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.structure import frozen, markdown
from tests.structure.markdown import Command
from tests.structure.source import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())

# What is run, whole lines with pipes and all; and what is not: it installs, or it serves until Ctrl-C.
RUN = re.compile(r"(?:\w+=\S+ )*(?:gradaccum|python -m gradaccum|echo)\b")
NOT_RUN = re.compile(r"gradaccum serve\b|pip install |uvx |uv |pipx |git clone |cd |playwright install |curl ")
MAKE = re.compile(r"(?:\w+=\S+ )*make( [\w-]+)?")


def sessions(text: str) -> list[list[Command]]:
    """The commands of each block, those that are not run left out."""
    consoles = [markdown.session(block) for block in markdown.blocks(text, "console")]
    scripts = [markdown.script(block) for block in markdown.blocks(text, "sh", "bash")]
    kept = [[command for command in block if not is_left_out(command.line)] for block in consoles + scripts]
    return [block for block in kept if block]


def is_left_out(line: str) -> bool:
    return bool(NOT_RUN.match(line) or MAKE.match(line))


def environment() -> dict[str, str]:
    """A plain terminal of 80 columns, with this Python's commands first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR"}}
    return {**kept, "PATH": path, "COLUMNS": "80", "LC_ALL": "C.UTF-8"}


def outcomes(text: str, folder: Path) -> list[tuple[Command, str, str]]:
    """Each command that is run, what it prints, and what is wrong with it: it fails, or the page shows otherwise."""
    found = []
    for block in sessions(text):
        results = markdown.run(block, folder, environment())
        found += [(command, "", f"$ {command.line}\n(never came back)") for command in block[len(results) :]]
        for command, following, (printed, code) in zip(block, [*block[1:], None], results, strict=False):
            fault = ""
            if code and not (following and following.line == "echo $?"):
                fault = f"$ {command.line}\n(exit code {code})\n{printed}"
            elif command.shown and not markdown.same(printed, command.shown):
                fault = f"$ {command.line}\n(the page shows)\n{command.shown}(it prints)\n{printed}"
            found.append((command, printed, fault))
    return found


def faults(text: str, folder: Path) -> list[str]:
    return [fault for _, _, fault in outcomes(text, folder) if fault]


@page
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path):
    text = page.read_text(encoding="utf-8")
    found = outcomes(text, tmp_path)
    if frozen.is_written_anew():
        for command, printed, _ in found:
            text = markdown.renewed(text, command, printed)
        page.write_text(text, encoding="utf-8")
    wrong = [fault for _, _, fault in found if fault]
    assert not wrong, "\n\n".join(wrong)


@page
def test_every_command_is_run_or_left_out_by_name(page: Path):
    commands = [command for block in sessions(page.read_text(encoding="utf-8")) for command in block]
    assert [command.line for command in commands if not RUN.match(command.line)] == []


@page
def test_make_targets_exist(page: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))
    named = re.findall(r"(?:^(?:\$ )?|`)make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name in named if name not in targets] == []


@page
@pytest.mark.slow  # a page may show a training loop
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page in order, as one program: asserts count."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in markdown.blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(block, str(page), "exec"), names)


@page
def test_named_paths_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    lost = [name for name in sorted(markdown.paths(text)) if not (page.parent / name).exists()]
    assert [name for name in lost if not list(ROOT.glob(name))] == []


# From here on: the checks can fail.

SAMPLE = """
See `docs/a.md`, [the guide](docs/guide.md#part) and https://example.org; `num_gpus/2` is no path.

```console
$ echo one; echo two >&2
one
two
$ echo a \\
    b
a b
$ make test
$ gradaccum serve --open
http://127.0.0.1:8000
```

```sh
# a comment
gradaccum plan -m 4
```
"""


def test_a_page_is_read_right():
    console, script = sessions(SAMPLE)
    assert console == [Command("echo one; echo two >&2", "one\ntwo\n"), Command("echo a \\\n    b", "a b\n")]
    assert script == [Command("gradaccum plan -m 4", "")]
    assert markdown.paths(SAMPLE) == {"docs/a.md", "docs/guide.md"}


def test_what_is_shown_right_is_no_fault(tmp_path: Path):
    text = SAMPLE.replace("gradaccum plan -m 4", "echo $((1 + 1))")
    assert faults(text, tmp_path) == []
    assert faults("```console\n$ echo a; echo b; echo c\na\n...\n```\n", tmp_path) == []
    assert faults("```console\n$ false\n$ echo $?\n1\n```\n", tmp_path) == []


def test_a_page_is_renewed_where_nothing_was_shortened():
    text = "```console\n$ a\nold\n$ b\n...\nold\n$ c\n```\n"
    for command in markdown.session("$ a\nold\n$ b\n...\nold\n$ c\n"):
        text = markdown.renewed(text, command, "new\n")
    assert text == "```console\n$ a\nnew\n$ b\n...\nold\n$ c\n```\n"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("$ echo one\ntwo\n", "(the page shows)\ntwo\n(it prints)\none"),
        ("$ echo one; echo two\none\n", "(it prints)\none\ntwo"),
        ("$ echo one\none\n...\ntwo\n", "(it prints)\none"),
        ("$ false\n", "(exit code 1)"),
        ("$ exit 3\n$ echo one\none\n", "(never came back)"),
    ],
)
def test_a_wrong_page_is_a_fault(tmp_path: Path, block: str, message: str):
    found = faults(f"```console\n{block}```\n", tmp_path)
    assert message in found[0]
