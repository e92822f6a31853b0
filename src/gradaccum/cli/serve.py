"""`gradaccum serve`: the live page, on this machine alone unless asked otherwise."""

from __future__ import annotations

from gradaccum.cli.options import Parser, new_parser, parse
from gradaccum.errors import InputError, Problem
from gradaccum.units import read_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """\
  gradaccum serve --open
  gradaccum serve --port 9000"""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("serve", "A live page on this machine. Ctrl-C ends it.", EXAMPLES)
    found.add_argument("--open", action="store_true", help="open the page in a browser")
    found.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: loopback)")
    found.add_argument("--port", metavar="N", help="default 8000; a free one is taken where it is in use")
    return found


def run(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C. Raises MissingExtraError without the extra `web`."""
    options = parse(parser(), arguments)
    port = 8000 if options.port is None else read_count(options.port, "--port")
    if port > 65535:
        raise InputError(Problem("--port", f"is a number up to 65535, not {port}", ["8000"]))
    from gradaccum.web.serve import serve

    return serve(host=options.host, port=port, open_browser=options.open)
