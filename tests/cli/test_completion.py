"""The completion scripts, read by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from gradaccum.cli import main
from gradaccum.cli.commands import COMMANDS
from gradaccum.cli.completion import parsers


def script(capsys, shell: str) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def shell_says(shell: str, text: str) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gradaccum", ""], {"plan", "table", "fit", "serve", "completion", "--micro-batch"}),
        (["gradaccum", "pl"], {"plan"}),
        (["gradaccum", "plan", "--mic"], {"--micro-batch"}),
        (["gradaccum", "--mic"], {"--micro-batch"}),
        (["gradaccum", "plan", "--rounding", ""], {"round", "ceil", "floor", "exact"}),
        (["gradaccum", "plan", "--preset", "bloom-176b-"], {"bloom-176b-gbs784"}),
        (["gradaccum", "plan", "--loop", "dd"], {"ddp"}),
        (["gradaccum", "serve", "--po"], {"--port"}),
        (["gradaccum", "fit", "--check"], {"--checkpointing"}),
        (["gradaccum", "fit", "--gpu", "rtx-40"], {"rtx-4090-24gb"}),
        (["gradaccum", "fit", "--model", "llama-3.1"], {"llama-3.1-8b", "llama-3.1-70b"}),
        (["gradaccum", "audit", "--epo"], {"--epoch-end"}),
        (["gradaccum", "audit", "--json", "pyproject"], {"pyproject.toml"}),
        (["gradaccum", "completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash(capsys, words, expected):
    listed = " ".join(f"'{word}'" for word in words)
    text = script(capsys, "bash") + (
        f"\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _gradaccum; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    offered = set(shell_says("bash", text).split())
    assert expected <= offered
    assert all(word.startswith(words[-1]) for word in offered)


@pytest.mark.parametrize(
    ("command", "expected"), [("plan", {"fp32", "bf16", "fp16"}), ("table", set()), ("fit", {"auto", "fp32"})]
)
def test_one_option_has_other_words_by_command(capsys, command, expected):
    words = f"gradaccum {command} --gradient-dtype ''"
    text = script(capsys, "bash") + f'\nCOMP_WORDS=({words}); COMP_CWORD=3; _gradaccum; echo "${{COMPREPLY[@]}}"\n'
    offered = {word for word in shell_says("bash", text).split() if not word.startswith("-")}
    assert offered == expected
    fish = script(capsys, "fish") + f"\ncomplete -C 'gradaccum {command} --gradient-dtype '\n"
    assert {row for row in shell_says("fish", fish).split() if row in {"fp32", "bf16", "fp16", "auto"}} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gradaccum pl", {"plan"}),
        ("gradaccum plan --mic", {"--micro-batch"}),
        ("gradaccum --mic", {"--micro-batch"}),
        ("gradaccum plan --rounding ", {"round", "ceil", "floor", "exact"}),
        ("gradaccum completion ", {"bash", "zsh", "fish"}),
        ("gradaccum plan --preset bloom-176b-", {"bloom-176b-gbs784"}),
        ("gradaccum fit --strategy zero", {"zero1", "zero2", "zero3"}),
        ("gradaccum fit --pick ", {"throughput", "largest"}),
    ],
)
def test_fish(capsys, line, expected):
    text = script(capsys, "fish") + f"\ncomplete -C '{line}'\n"
    offered = {row.split("\t")[0] for row in shell_says("fish", text).splitlines()}
    assert expected <= offered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gradaccum pl\t", "gradaccum plan"),
        ("gradaccum plan --micro\t", "gradaccum plan --micro-batch"),
        ("gradaccum plan --rounding ex\t", "gradaccum plan --rounding exact"),
        ("gradaccum completion fi\t", "gradaccum completion fish"),
        ("gradaccum fit --checkpointing sel\t", "gradaccum fit --checkpointing selective"),
    ],
)
def test_zsh(capsys, tmp_path, line, expected):
    """A real zsh behind a pseudo-terminal: type, press TAB, read the line."""
    import os
    import pty
    import select
    import time

    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh here")
    (tmp_path / "_gradaccum").write_text(script(capsys, "zsh"))
    (tmp_path / ".zshrc").write_text(f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D; PS1='> '\n")
    child, terminal = pty.fork()
    if child == 0:
        os.execve(
            zsh, [zsh, "-i"], {"ZDOTDIR": str(tmp_path), "TERM": "dumb", "HOME": str(tmp_path), "PATH": os.defpath}
        )
    try:
        shown = b""

        def read_until(text: bytes) -> None:
            nonlocal shown
            deadline = time.monotonic() + 20
            while text not in shown and time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.2)[0]:
                    shown += os.read(terminal, 4096)

        read_until(b"> ")
        shown = b""
        os.write(terminal, line.encode())
        read_until(expected.encode())
        assert expected.encode() in shown
    finally:
        os.kill(child, 9)
        os.close(terminal)
        os.waitpid(child, 0)


def test_no_command_is_left_out():
    assert set(parsers()) == set(COMMANDS)


def test_a_shell_has_to_be_named(capsys):
    assert main(["completion"]) == 2
    assert main(["completion", "powershell"]) == 2
    assert "bash or zsh or fish" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_start_no_python(capsys, shell):
    assert "$(gradaccum" not in script(capsys, shell)
