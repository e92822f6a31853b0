"""The command line: parse -> Request -> core -> show. One file per command; `main` is the entry point."""

from __future__ import annotations

from gradaccum.cli.main import main

__all__ = ["main"]
