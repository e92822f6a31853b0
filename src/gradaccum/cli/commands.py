"""The commands by name, each with what it answers."""

from __future__ import annotations

COMMANDS = {
    "plan": "how many accumulation steps, and what batch you really get",
    "table": "the same for lists and ranges of inputs, best first",
    "fit": "the largest micro-batch that your GPU holds, known before the run",
    "audit": "does your training loop do what the big batch would?",
    "serve": "a live page on this machine",
    "site": "the same page as static files, calculated in the browser",
    "completion": "a completion script for bash, zsh or fish",
}
