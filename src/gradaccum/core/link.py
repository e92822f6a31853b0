"""The address of the live page with a plan in it. The page may be served, or lie somewhere as static files."""

from __future__ import annotations

from gradaccum.core.query import MAX_QUERY, VIEW, reads_as, to_query
from gradaccum.errors import InputError, Problem, nearest_words
from gradaccum.units import quote, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.request import Request

SCHEMES = ("https", "http", "file")

KEPT = VIEW[1:]
"""What a page's address may say already. A preset is none of it: the plan brings its inputs along."""


def link(page: str, request: Request) -> str:
    """`page` with the request in its query. Texts stay as they were written, since findings may speak of them.

    Raises InputError where `page` is no address, or a value does not go into one.
    """
    base, view, fragment = _parts(page)
    written = {name: text for name, text in request.written if reads_as(name, text, getattr(request, name))}
    query = "&".join(part for part in (to_query({**request.given(), **written}), view) if part)
    if len(query) > MAX_QUERY:
        raise InputError(
            Problem("", f"the link's query has {show_count(len(query))} characters; the page reads {MAX_QUERY}")
        )
    return _whole(base, query, fragment)


def _parts(page: object) -> tuple[str, str, str]:
    """Where the page is, the query that it has already, and its fragment."""
    if not isinstance(page, str):
        raise InputError(Problem("page", f"must be the address of the live page as text, not {quote(repr(page))}"))
    text = page.strip()
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.lower() not in SCHEMES:
        raise InputError(_no_address(page, "begins with none of https://, http:// and file://", _guesses(text)))
    if _encoded(text) != text:
        raise InputError(_no_address(page, "has characters that an address must encode", [_encoded(text)]))
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    host, _, path = rest.partition("/")
    on_disk = scheme.lower() == "file"
    if not (path if on_disk else host):
        raise InputError(_no_address(page, "names no place", []))
    base = f"{scheme}://{host}/{path}"
    if not path.lower().endswith((".html", ".htm")):
        base = base.rstrip("/") + "/"  # the page looks for its own files beside it
        base += "index.html" if on_disk else ""  # a browser would list the folder
    kept, refused = _sorted_out(query)
    if refused:
        what = f"has {quote('&'.join(refused))} in its query, which is the plan's to fill"
        raise InputError(_no_address(page, what, [_whole(base, "&".join(kept), fragment)]))
    return base, "&".join(kept), fragment


def _sorted_out(query: str) -> tuple[list[str], list[str]]:
    """The parameters of KEPT, each once, as far as the page takes them; and the others."""
    kept: dict[str, str] = {}
    refused = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in KEPT and name not in kept and (name != "embed" or value in ("", "0", "1")):
            kept[name] = pair
        elif pair:
            refused.append(pair)
    return [kept[name] for name in KEPT if name in kept], refused


def _whole(base: str, query: str, fragment: str) -> str:
    return base + ("?" + query if query else "") + ("#" + fragment if fragment else "")


def _encoded(text: str) -> str:
    return "".join(f"%{ord(c):02X}" if c <= " " or c in '<>"\x7f' else c for c in text)


def _no_address(page: str, what: str, guesses: list[str]) -> Problem:
    """guesses: what may have been meant; where one of them is no address either, what comes nearest to it."""
    nearest: list[str] = []
    for guess in guesses:
        try:
            _parts(guess)
            nearest.append(guess)
        except InputError as error:
            nearest += error.problems[0].nearest
    return Problem("page", f"must be the address of the live page, and {quote(page)} {what}", nearest)


def _guesses(text: str) -> list[str]:
    """The address that a text without a known scheme may stand for: a path on this machine, a host, a slip."""
    scheme, colon, rest = text.partition("://")
    plain = text.replace("\\", "/")
    host = plain.partition("/")[0]
    if colon:
        return [f"{word}://{rest}" for word in nearest_words(scheme, SCHEMES)]
    if plain.startswith("file:/"):
        return ["file://" + plain[5:]]
    if plain.startswith("/"):
        return ["file://" + plain]
    if plain[1:3] == ":/":
        return ["file:///" + plain]
    if host.partition(":")[0] in ("localhost", "127.0.0.1"):
        return ["http://" + plain]
    return ["https://" + plain] if "." in host[1:-1] else []
