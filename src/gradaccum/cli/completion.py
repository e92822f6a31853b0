"""`gradaccum completion`: static scripts for bash, zsh and fish, so that no Python starts at a TAB."""

from __future__ import annotations

from gradaccum.cli import audit, fit, plan, serve, site, table
from gradaccum.cli.commands import COMMANDS
from gradaccum.cli.options import Parser, new_parser, parse
from gradaccum.core.fields import BY_NAME
from gradaccum.errors import InputError, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

EXAMPLES = """\
  source <(gradaccum completion bash)
  gradaccum completion zsh > "${fpath[1]}/_gradaccum"
  gradaccum completion fish > ~/.config/fish/completions/gradaccum.fish"""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("completion", "A completion script on stdout.", EXAMPLES)
    found.usage = "gradaccum completion bash|zsh|fish"
    found.add_argument("shell", nargs="?", metavar="bash|zsh|fish", help="the shell that will read it")
    return found


def run(arguments: Sequence[str]) -> int:
    """Print the script for the shell that is named."""
    shell = parse(parser(), arguments).shell
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in scripts:
        raise InputError(Problem("", f"name a shell, not {shell!r}" if shell else "name a shell", list(scripts)))
    print(scripts[shell](_commands()), end="")
    return 0


def parsers() -> dict[str, Parser]:
    """Every command's parser, by name."""
    commands = {"plan": plan, "table": table, "fit": fit, "audit": audit, "serve": serve, "site": site}
    return {**{name: module.parser() for name, module in commands.items()}, "completion": parser()}


def _commands() -> dict[str, list[argparse.Action]]:
    """Each command's options; options alone make a plan, so that the empty command has those."""
    options = {name: [action for action in each._actions if action.option_strings] for name, each in parsers().items()}
    return {**options, "": options["plan"]}


def _words(command: str, action: argparse.Action) -> tuple[str, ...]:
    """What can stand behind the option, where that is known; `--gradient-dtype` takes other words by command."""
    if command == "fit":
        return _words_of_fit(action.dest)
    if action.dest == "preset":
        from gradaccum.catalog.runs import published_runs

        return tuple(run.id for run in published_runs())
    if action.dest == "loop":
        from gradaccum.show.loop import STRATEGIES

        return tuple(STRATEGIES)
    if action.dest == "weighting":
        from gradaccum.show.loop import WEIGHTINGS

        return tuple(WEIGHTINGS)
    return BY_NAME[action.dest].choices if action.dest in BY_NAME else ()


def _words_of_fit(name: str) -> tuple[str, ...]:
    from gradaccum.catalog.gpus import gpus
    from gradaccum.catalog.models import models
    from gradaccum.cli.fit_probe import PICKS
    from gradaccum.memory.engines import ENGINES
    from gradaccum.memory.setup import CHOICES

    own = {"model": [each.id for each in models()], "gpu": [each.id for each in gpus()], "engine": ENGINES}
    return tuple({**CHOICES, **own, "pick": PICKS, "device": ("cpu", "cuda")}.get(name, ()))


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").split(";")[0]


def _bash(commands: dict[str, list[argparse.Action]]) -> str:
    def case(name: str, options: list[argparse.Action]) -> str:
        flags = " ".join(flag for action in options for flag in action.option_strings)
        values = {"|".join(action.option_strings): " ".join(_words(name, action)) for action in options}
        cases = "".join(f"\n                {flag}) words='{words}' ;;" for flag, words in values.items() if words)
        behind = f"\n            case $previous in{cases}\n            esac" if cases else ""
        return f"        {name or '*'}) words='{flags}'{behind} ;;"

    names = " ".join(name for name in commands if name)
    cases = "\n".join(case(name, options) for name, options in commands.items())
    return f"""\
# gradaccum: completion for bash
_gradaccum() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=''
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    if [[ $words == -* && ${{COMP_WORDS[1]}} == audit && $COMP_CWORD -gt 1 && $current != -* ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$current"))
        return
    fi
    if [[ $COMP_CWORD == 1 ]]; then words="{names} $words"; fi
    if [[ ${{COMP_WORDS[1]}} == completion && $COMP_CWORD == 2 ]]; then words='bash zsh fish'; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _gradaccum gradaccum
"""


def _zsh(commands: dict[str, list[argparse.Action]]) -> str:
    def argument(command: str, action: argparse.Action) -> str:
        flags = action.option_strings
        names = f"'({' '.join(flags)})'{{{','.join(flags)}}}" if len(flags) > 1 else f"'{flags[0]}'"
        value = ""
        if _takes_value(action):
            words = " ".join(_words(command, action))
            optional = "::" if action.nargs == "?" else ":"
            value = f"{optional}value:" + (f"({words})" if words else " ")
        return f"{names}'[{_zsh_text(_help(action))}]{value}'"

    cases = "\n".join(
        f"        {name or '*'}) _arguments -s "
        + {"completion": " '1:shell:(bash zsh fish)' ", "audit": " '*:what to run:_files' "}.get(name, "")
        + " ".join(argument(name, action) for action in options)
        + " ;;"
        for name, options in commands.items()
    )
    names = " ".join(name for name in commands if name)
    return f"""\
#compdef gradaccum
# gradaccum: completion for zsh
_gradaccum() {{
    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        compadd {names}
        return
    fi
    local command=$words[2]
    case $command in
        {"|".join(name for name in commands if name)}) shift words; (( CURRENT-- )) ;;
    esac
    case $command in
{cases}
    esac
}}
if [[ $funcstack[1] == _gradaccum ]]; then _gradaccum "$@"; else compdef _gradaccum gradaccum; fi
"""


def _zsh_text(text: str) -> str:
    for special in ("\\", "[", "]", ":"):
        text = text.replace(special, "\\" + special)
    return text.replace("'", "'\\''")


def _fish(commands: dict[str, list[argparse.Action]]) -> str:
    lines = ["# gradaccum: completion for fish", "complete -c gradaccum -f"]
    names = " ".join(COMMANDS)
    for name, what in COMMANDS.items():
        lines.append(f"complete -c gradaccum -n __fish_use_subcommand -a {name} -d '{_fish_text(what)}'")
    lines.append("complete -c gradaccum -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'")
    lines.append("complete -c gradaccum -n '__fish_seen_subcommand_from audit' -F")
    for name, options in commands.items():
        seen = f"__fish_seen_subcommand_from {name}" if name else f"not __fish_seen_subcommand_from {names}"
        for action in options:
            flags = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in action.option_strings)
            words = _words(name, action)
            value = (f" -x -a '{' '.join(words)}'" if words else " -x") if _takes_value(action) else ""
            if action.nargs == "?":
                value = value.replace(" -x", "")
            lines.append(f"complete -c gradaccum -n '{seen}' {flags}{value} -d '{_fish_text(_help(action))}'")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
