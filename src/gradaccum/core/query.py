"""The permalink: inputs to a query string and back, the same on the server, in the browser and in a notebook's link.

What a query leaves out takes the page's defaults; a name with nothing behind it (`target_batch=`) is blank on purpose.
"""

from __future__ import annotations

from gradaccum.core.fields import BY_NAME, FIELDS, NAME_OF
from gradaccum.core.request import read_value, unknown_name
from gradaccum.errors import InputError, Problem
from gradaccum.units import MAX_DIGITS, Ratio, show_count, show_exact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DEFAULTS = {"micro_batch": "4", "num_gpus": "8", "target_batch": "500", "sequence_length": "2048"}
"""What the page shows at first: a real result with something to see."""

MAX_QUERY = 2000
"""Characters of a query string that are read."""

VIEW = ("preset", "loop", "weighting", "embed")
"""Query parameters that are no inputs: where the inputs start from, and how the page shows the plan."""

APPENDED = ("utm_", "__", "fbclid", "gclid", "igshid", "mc_cid", "mc_eid", "msclkid")
"""How names begin that others append to a link: mail tools, analytics, and whoever shows the page in a frame."""

_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~,"


def parse_query(query: str, extra: Collection[str] = ()) -> tuple[dict[str, str], list[Problem]]:
    """Name -> text, by the inputs' own names, and what is wrong: a name that nobody knows, or one that stands there
    twice. `extra` names are passed through as they are, and what others append to links is left out. Of a query that
    is too long nothing is read.
    """
    values: dict[str, str] = {}
    problems: list[Problem] = []
    if len(query) > MAX_QUERY:
        words = f"the query has {show_count(len(query))} characters; at most {MAX_QUERY} are read"
        return values, [Problem("", words)]
    wrong = set()
    for pair in query.split("&"):
        if not pair:
            continue
        spelling, _, text = pair.partition("=")
        spelling = _decode(spelling)
        name = spelling if spelling in extra else NAME_OF.get(spelling.replace("-", "_"))
        if name is None and spelling.startswith(APPENDED):
            continue
        if name is not None and name not in values:
            values[name] = _decode(text)
        elif spelling not in wrong:
            wrong.add(spelling)
            if name is None:
                problems.append(unknown_name(spelling, NAME_OF, "is not an input"))
            else:
                problems.append(Problem(name, "stands in the query twice; leave one out"))
    return values, problems


def with_defaults(values: Mapping[str, str]) -> dict[str, str]:
    """`values` and the page's defaults, as far as they leave something to solve for."""
    filled = dict(values)
    if "sequence_length" not in filled:
        filled["sequence_length"] = DEFAULTS["sequence_length"]
    slots = {
        "micro_batch": ("micro_batch", "max_micro_batch"),
        "num_gpus": ("num_gpus",),
        "target_batch": ("target_batch", "target_tokens"),
        "accum_steps": ("accum_steps",),
    }
    known = sum(any(filled.get(name, "").strip() for name in names) for names in slots.values())
    for slot in ("micro_batch", "num_gpus", "target_batch"):
        if known < 3 and not any(filled.get(name, "").strip() for name in slots[slot]) and slot not in filled:
            filled[slot] = DEFAULTS[slot]
            known += 1
    return filled


def to_query(values: Mapping[str, object]) -> str:
    """The shortest query that reads back as `values` (with_defaults of it): no "?", defaults left out.

    Values are texts, or numbers as a Request holds them. Raises InputError for a number that no text gives exactly.
    """
    wanted = {name: text for name, text in _texts(values).items() if text != _fixed_default(name)}
    kept = {name: text for name, text in wanted.items() if text != DEFAULTS.get(name)}
    for _ in DEFAULTS:  # each round names one more main input, where leaving it out would bring another value
        read = {name: text for name, text in with_defaults(kept).items() if text}
        wrong = [name for name in DEFAULTS if read.get(name) != wanted.get(name)]
        if not wrong:
            break
        kept[wrong[-1]] = wanted.get(wrong[-1], "")
    names = [spec.name for spec in FIELDS if spec.name in kept]
    return "&".join(f"{name}={encode(kept[name])}" for name in names)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """The inputs that have something behind them, as text."""
    texts = {
        name: value.strip() if isinstance(value, str) else exact_text(name, value)
        for name, value in values.items()
        if value is not None and name in BY_NAME
    }
    return {name: text for name, text in texts.items() if text}


def exact_text(name: str, value: object) -> str:
    """The text that the input `name` reads as `value`, to the last digit. Raises InputError where there is none."""
    text = ""
    if isinstance(value, Ratio):
        text = show_exact(value)
    elif isinstance(value, float):
        text = repr(float(value))  # the shortest that reads back; float(): other libraries' floats say more
    elif isinstance(value, int) and abs(value) < 10**MAX_DIGITS:
        text = str(value)
    if not (text and reads_as(name, text, value)):
        raise InputError(
            Problem(
                name,
                f"cannot be written in a link: no number of at most {MAX_DIGITS} digits is exactly that",
                [str(value)] if isinstance(value, Ratio) else [],
            )
        )
    return text


def reads_as(name: str, text: str, value: object) -> bool:
    """Whether the input `name` reads `text` as `value`."""
    try:
        return read_value(name, text) == value
    except InputError:
        return False


def _fixed_default(name: str) -> str:
    """The default that holds everywhere, not on the page alone."""
    default = BY_NAME[name].default
    return "" if default is None else str(default)


def encode(text: str) -> str:
    """`text` as a value of a query."""
    return "".join(
        c if c in _PLAIN else "+" if c == " " else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text
    )


def _decode(text: str) -> str:
    """Percent-decoding; what is no valid escape or no valid UTF-8 stays visible as it is."""
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    raw = text.encode()
    out = bytearray()
    position = 0
    while position < len(raw):
        byte = raw[position]
        pair = raw[position + 1 : position + 3]
        if byte == 0x25 and len(pair) == 2 and all(c in b"0123456789abcdefABCDEF" for c in pair):
            out.append(int(pair, 16))
            position += 3
        else:
            out.append(byte)
            position += 1
    if _is_utf8(out):
        return bytes(out).decode()
    return "".join(chr(byte) if byte < 128 else "\ufffd" for byte in out)


def _is_utf8(raw: bytearray) -> bool:
    """Whether it is UTF-8 as Unicode defines it (table 3-7): not every Python's decoder looks that closely."""
    position = 0
    while position < len(raw):
        lead = raw[position]
        more = 0 if lead < 0x80 else 1 if 0xC2 <= lead <= 0xDF else 2 if 0xE0 <= lead <= 0xEF else 3
        if lead > 0xF4 or 0x80 <= lead < 0xC2 or position + more >= len(raw):
            return False
        if more:
            # The second byte says whether it is a longer form than needed, a surrogate, or beyond U+10FFFF.
            lowest = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
            highest = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
            if not lowest <= raw[position + 1] <= highest:
                return False
        if any(not 0x80 <= byte <= 0xBF for byte in raw[position + 2 : position + 1 + more]):
            return False
        position += 1 + more
    return True
