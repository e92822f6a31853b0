"""`gradaccum table`: many plans as rows, best first."""

from __future__ import annotations

import sys

from gradaccum.cli.options import Parser, add_inputs, inputs_of, new_parser, parse
from gradaccum.cli.terminal import columns, style
from gradaccum.core.plan import SCHEMA_VERSION
from gradaccum.core.sweep import sweep
from gradaccum.show.text import table_text
from gradaccum.units import read_count, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 20
"""Rows that are printed where --limit is not given."""

TABLE_GROUPS = ("main", "solve", "parallel")
"""The inputs that a row depends on."""

EXAMPLES = """\
  gradaccum table -m 1..16 -g 8 -t 500
  gradaccum table -m 4 -g 8,16,32 -t 256,512,1024
  gradaccum table -m 8..64..8 -g 8 -t '4M tokens' -s 2048,4096 --limit 0 --json"""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser(
        "table",
        "Many plans as rows, sorted by |drift|. Every input takes a list (8,16,32) or a range (1..16, 8..64..8).",
        EXAMPLES,
    )
    output = found.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="all rows as JSON")
    output.add_argument("--limit", metavar="N", help=f"rows to print (default {SHOWN}; 0 prints all)")
    output.add_argument("--no-color", action="store_true", help="no colour; NO_COLOR is honoured too")
    add_inputs(found, TABLE_GROUPS, leave_out=("vary",))
    return found


def run(arguments: Sequence[str]) -> int:
    """Print the rows."""
    options = parse(parser(), arguments)
    rows = sweep(inputs_of(options))
    limit = SHOWN if options.limit is None else read_count(options.limit, "--limit")
    shown = rows[:limit] if limit else rows
    if options.json:
        import json

        shown = rows if options.limit is None else shown
        rows_out = [row.to_dict() for row in shown]
        print(json.dumps({"schema_version": SCHEMA_VERSION, "total": len(rows), "rows": rows_out}, indent=2))
        return 0
    print(table_text(shown, columns(), style(options.no_color)), flush=True)  # before what follows on stderr
    if len(shown) < len(rows):
        print(f"{show_count(len(rows) - len(shown))} more rows; --limit 0 prints all", file=sys.stderr)
    return 0
