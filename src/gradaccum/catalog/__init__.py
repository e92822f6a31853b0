"""Rows of published facts, each with its source, and their look-up. An unknown name is never guessed."""

from __future__ import annotations

from gradaccum.catalog.runs import PublishedRun, find_run, published_runs

__all__ = ["PublishedRun", "find_run", "published_runs"]
