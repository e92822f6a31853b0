"""What lowered code calls where MicroPython is short of Python: order, stability, whole numbers, white space.

`lower` writes these names in place of the built-in ones; importing this module puts them among the built-ins.
"""

from __future__ import annotations

import builtins
from collections import OrderedDict


def _ordered(*parts):  # type: ignore[no-untyped-def]
    """A dictionary display that unpacks others: each part a dictionary, or pairs."""
    result = OrderedDict()
    for part in parts:
        result.update(part)
    return result


def _from_keys(names, value=None):  # type: ignore[no-untyped-def]
    """`dict.fromkeys`"""
    return OrderedDict([(name, value) for name in names])


def _sorted(items, key=None, reverse=False):  # type: ignore[no-untyped-def]
    """`sorted`, and stable: what compares equal stays in its order."""
    key = key or (lambda each: each)
    whole = list(items)
    size = len(whole)
    ranked = sorted([(key(each), size - place if reverse else place) for place, each in enumerate(whole)])
    if reverse:
        ranked.reverse()
    return [whole[size - place if reverse else place] for _, place in ranked]


def _range(*limits):  # type: ignore[no-untyped-def]
    """`range`, of numbers beyond a machine word too."""
    try:
        return builtins.range(*limits)
    except OverflowError:
        return _big_range(*limits)  # type: ignore[no-untyped-call]


def _big_range(*limits):  # type: ignore[no-untyped-def]
    start, stop, step = limits if len(limits) == 3 else (*limits, 1) if len(limits) == 2 else (0, limits[0], 1)
    count = (stop - start + step + (-1 if step > 0 else 1)) // step
    return [start + step * place for place in builtins.range(max(0, count))]


_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What str.strip takes away: every character that Unicode calls white space."""


def _lstrip(text):  # type: ignore[no-untyped-def]
    while text and text[0] in _SPACE:
        text = text[1:]
    return text


def _rstrip(text):  # type: ignore[no-untyped-def]
    while text and text[-1] in _SPACE:
        text = text[:-1]
    return text


def _strip(text):  # type: ignore[no-untyped-def]
    text = text.strip(" \t\n\r")  # mostly that is all
    if not text or ("!" <= text[0] <= "~" and "!" <= text[-1] <= "~"):
        return text
    return _lstrip(_rstrip(text))  # type: ignore[no-untyped-call]


def _is_ascii(text):  # type: ignore[no-untyped-def]
    return len(text.encode()) == len(text)


for _thing in (_is_ascii, _ordered, _from_keys, _sorted, _range, _strip, _lstrip, _rstrip):
    setattr(builtins, _thing.__name__, _thing)
builtins.OrderedDict = OrderedDict  # type: ignore[attr-defined]
