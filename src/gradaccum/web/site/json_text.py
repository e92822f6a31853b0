"""JSON text that is equal to the byte in every Python: what `json.dumps` of CPython writes, compact and not escaped.

The server writes its answers with that function. MicroPython's own differs in control characters and in the last
digit of some floats, and knows no order.
"""

from __future__ import annotations

import re

from gradaccum.units import decimal, ratio_of, significant

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_SPECIAL = re.compile('["\\\\\x01-\x1f]')
_HEX = "0123456789abcdef"


def json_text(value: object) -> str:
    """`value` as JSON without spaces. Floats are finite. Raises TypeError for what JSON has no form for."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        plain = not _SPECIAL.search(value) and "\0" not in value
        return '"' + (value if plain else "".join([_escaped(letter) for letter in value])) + '"'
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([json_text(each) for each in value]) + "]"
    if isinstance(value, dict):
        return "{" + ",".join([json_text(name) + ":" + json_text(each) for name, each in value.items()]) + "}"
    raise TypeError(f"JSON has no form for {value!r}")


def float_text(value: float) -> str:
    """The shortest decimal that reads back as this finite double: `repr` of CPython."""
    if value < 0:
        return "-" + float_text(-value)
    if value == 0:
        return "0.0"
    figure, exponent = _shortest(value)
    text = str(figure)
    if -4 <= exponent < 0:
        return "0." + "0" * (-exponent - 1) + text
    if 0 <= exponent < 16:
        whole = text + "0" * (exponent + 1 - len(text))
        return whole[: exponent + 1] + "." + (whole[exponent + 1 :] or "0")
    size = abs(exponent)
    tail = ("-" if exponent < 0 else "+") + ("0" if size < 10 else "") + str(size)
    return text[0] + ("." + text[1:] if len(text) > 1 else "") + "e" + tail


def _shortest(value: float) -> tuple[int, int]:
    """(digits as an integer, exponent of the first) of the shortest decimal that reads back, the nearest of those."""
    exact, digits = ratio_of(value), 1
    while True:  # 17 digits tell every double from the others
        figure, exponent = significant(exact.numerator, exact.denominator, digits)
        power = exponent - digits + 1
        # Its neighbours too: at a power of two the nearest decimal may read back as the double below it.
        fitting = [each for each in (figure, figure + 1, figure - 1) if _reads_as(each, power, value)]
        if fitting:
            up, down = 10 ** max(power, 0) * exact.denominator, 10 ** max(-power, 0) * exact.numerator
            return min([(abs(each * up - down), each % 2, each) for each in fitting])[2], exponent
        digits += 1


def _reads_as(figure: int, power: int, value: float) -> bool:
    try:
        return float(decimal(figure, power)) == value
    except OverflowError:  # just beyond the largest double
        return False


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    code = ord(letter)
    return letter if code >= 32 else "\\u00" + _HEX[code // 16] + _HEX[code % 16]
