"""`gradaccum site build`: the page as static files."""

from __future__ import annotations

from gradaccum.cli.options import Parser, new_parser, parse
from gradaccum.errors import InputError, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """\
  gradaccum site build public
  python3 -m http.server --directory public"""


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("site", "The page as a folder of static files: the browser runs the same Python.", EXAMPLES)
    found.usage = "gradaccum site build DIR [options]"
    found.add_argument("what", nargs="?", metavar="build", help="what to do")
    found.add_argument("folder", nargs="?", metavar="DIR", help="where the files go; made where it is not there")
    found.add_argument("--engine", metavar="FILE", help="the engine's npm package, where it cannot be fetched")
    return found


def run(arguments: Sequence[str]) -> int:
    """Write the files and say how much a first visit loads. Raises EngineError, and InputError for a bad folder."""
    options = parse(parser(), arguments)
    if options.what != "build" or options.folder is None:
        raise InputError(Problem("", "say what to build, and where", ["gradaccum site build public"]))
    import gzip
    import shlex

    from gradaccum.web.site.build import FIRST_VISIT, build

    try:
        files = build(options.folder, options.engine)
    except OSError as error:
        raise InputError(
            Problem("", f"cannot write to {error.filename or options.folder}: {error.strerror}")
        ) from error
    loaded = sum(len(gzip.compress(files[name])) for name in FIRST_VISIT)
    print(f"{options.folder}: {len(files)} files; a first visit loads {round(loaded / 1000)} kB compressed")
    print(f"look at it with: python3 -m http.server --directory {shlex.quote(options.folder)}")
    print("or open its index.html as a file")
    return 0
