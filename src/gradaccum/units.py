"""Read and show counts, decimals, tokens and bytes. Integers until the last character.

Reading is forgiving: `4M`, `2k`, `2Ki`, `0.5M`, `1_024`, `1,024`, `1e6`, `2^19` and `16x8` are counts, exactly.
Showing never goes through float formatting, so that every Python prints the same digits.
"""

from __future__ import annotations

import math
import re

from gradaccum.errors import InputError, Problem, lowered

MAX_DIGITS = 100
"""Counts that arrive as text have at most this many digits."""

MAX_TEXT = 200
"""Longer text is refused unread."""

SCALES = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "b": 10**9,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}

_NUMBER = re.compile(r"^([+-]?)([0-9][0-9_,]*|)(\.[0-9_]*|)([eE][+-]?[0-9]+|)\s*([A-Za-z]*)$")


class Ratio:
    """An exact fraction of two counts, for shares and decimals that a person typed: 1.5 epochs is 3/2."""

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: int, denominator: int = 1) -> None:
        divisor, rest = abs(numerator), denominator
        while rest:
            divisor, rest = rest, divisor % rest
        self.numerator = numerator // divisor
        self.denominator = denominator // divisor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ratio) and (self.numerator, self.denominator) == (
            other.numerator,
            other.denominator,
        )

    def __hash__(self) -> int:
        return hash((self.numerator, self.denominator))

    def __float__(self) -> float:
        """The nearest double, a tie to even: not every Python divides large integers so. OverflowError beyond all."""
        if self.numerator < 0:
            return -float(Ratio(-self.numerator, self.denominator))
        # A quotient of 55 bits or more; what does not divide, or is shifted out, is kept as a last bit that is set.
        shift = 60 + 4 * (len(hex(self.denominator)) - len(hex(self.numerator)))
        quotient, rest = divmod(self.numerator << max(shift, 0), self.denominator << max(-shift, 0))
        excess = max(0, shift - 1074)  # below the smallest normal double there are fewer bits
        while quotient >> excess >= 2**53:
            excess += 1
        mantissa = quotient >> excess
        below, half = 2 * (quotient - (mantissa << excess)) + (1 if rest else 0), 1 << excess
        if below > half or (below == half and mantissa % 2):
            mantissa += 1
        return math.ldexp(float(mantissa), excess - shift)

    def __repr__(self) -> str:
        return f"Ratio({self.numerator}, {self.denominator})"

    def __str__(self) -> str:
        return show_ratio(self.numerator, self.denominator)

    def floor_of(self, count: int) -> int:
        """The whole part of this share of `count`."""
        return count * self.numerator // self.denominator

    def ceil_of(self, count: int) -> int:
        """This share of `count`, rounded up to a whole."""
        return -(-count * self.numerator // self.denominator)


# Reading


def read_count(text: str, field: str = "", minimum: int = 0) -> int:
    """The count that a person wrote. Raises InputError, with the nearest counts, where there is none."""
    if text.isdigit() and len(text) <= 15 and len(text.encode()) == len(text):  # as most are; digits of ASCII alone
        return at_least(int(text), minimum, field)
    ratio = _read_product(text, field)
    if ratio.denominator != 1:
        below = ratio.numerator // ratio.denominator
        candidates = [max(below, minimum), max(below + 1, minimum)]
        head, _, tail = text.strip().partition(".")
        if _is_digits(head) and _is_digits(tail) and len(tail) == 3:  # 1.024 may mean 1,024
            candidates.append(int(head + tail))
        nearest = [str(count) for count in sorted(set(candidates))]
        raise InputError(Problem(field, f"must be a whole number, not {quote(text)}", nearest))
    return at_least(ratio.numerator, minimum, field)


def at_least(count: int, minimum: int, field: str) -> int:
    """`count` itself. Raises InputError where it is below `minimum`."""
    if count < minimum:
        raise InputError(Problem(field, f"must be at least {minimum}, not {show_count(count)}", [str(minimum)]))
    return count


def read_ratio(text: str, field: str = "") -> Ratio:
    """A decimal such as `1.5`, `0.3` or `30%`, kept exact. Raises InputError where the text is no number."""
    text = text.strip()
    if text.endswith("%"):
        percent = _read_product(text[:-1], field)
        return Ratio(percent.numerator, percent.denominator * 100)
    return _read_product(text, field)


def read_real(text: str, field: str = "") -> float:
    """A real number such as a learning rate, `3e-4`. Raises InputError where there is none."""
    return float(_read_product(text, field))


def read_bytes(text: str, field: str = "", minimum: int = 0) -> int:
    """Bytes from `80GB` (10**9), `80GiB` (2**30), `24576 MiB`, `80G` or a plain number.

    A fraction of a byte is dropped. Raises InputError where there is no such number, or it is below `minimum`.
    """
    plain = text.strip()
    for ending in ("bytes", "byte", "b"):
        if lowered(plain).endswith(ending):
            plain = plain[: -len(ending)].strip()
            break
    if lowered(plain).endswith("b"):  # a count may end so, in billions; bytes may not
        raise InputError(_not_bytes(text, field))
    try:
        ratio = _read_product(plain, field)
    except InputError:
        raise InputError(_not_bytes(text, field)) from None
    return at_least(ratio.numerator // ratio.denominator, minimum, field)


def _not_bytes(text: str, field: str) -> Problem:
    return Problem(field, f"is no number of bytes: {quote(text)}; write one such as 80GB, 24GiB or 24576MiB")


def _read_product(text: str, field: str) -> Ratio:
    """`16x8`, `2*1024`, `2^19` and plain numbers: factors are read one by one and multiplied."""
    if len(text) > MAX_TEXT:
        raise InputError(Problem(field, f"is too long: {len(text)} characters, at most {MAX_TEXT}"))
    plain = text.strip().replace("**", "^").replace("\u00d7", "x").replace("*", "x")
    numerator = denominator = 1
    for factor in plain.split("x"):
        base, caret, exponent = factor.partition("^")
        value = _read_number(base, text, field)
        power = 1
        if caret:
            if not (_is_digits(exponent.strip()) and len(exponent.strip()) <= 3):
                raise InputError(_not_a_number(text, field))
            power = int(exponent)
        numerator *= value.numerator**power
        denominator *= value.denominator**power
        if abs(numerator) >= 10**MAX_DIGITS or denominator > 10**MAX_DIGITS:
            raise InputError(Problem(field, f"has too many digits: at most {MAX_DIGITS} are read"))
    return Ratio(numerator, denominator)


def _read_number(part: str, text: str, field: str) -> Ratio:
    """One factor: sign, digits with separators, decimals, exponent, suffix. `text` is what the message quotes."""
    match = _NUMBER.match(part.strip()) if part.isascii() else None
    if not match:
        raise InputError(_not_a_number(text, field))
    sign, whole, decimals, exponent, suffix = (match.group(i) or "" for i in (1, 2, 3, 4, 5))
    digits = _ungroup(whole)
    decimals = decimals[1:].replace("_", "")
    if digits is None or not (digits or decimals):
        raise InputError(_not_a_number(text, field))
    if suffix.lower() not in SCALES:
        raise InputError(
            Problem(
                field,
                f"has the unknown suffix {quote(suffix)} in {quote(text)}; known are k, M, B, T and Ki, Mi, Gi, Ti",
                [digits] if digits else [],
            )
        )
    shift = int(exponent[1:] or 0) if len(exponent) <= 5 else 10 * MAX_DIGITS
    if abs(shift) > 3 * MAX_DIGITS:
        raise InputError(Problem(field, f"has too many digits: at most {MAX_DIGITS} are read"))
    numerator = int((digits + decimals) or "0") * SCALES[suffix.lower()] * 10 ** max(shift, 0)
    return Ratio(-numerator if sign == "-" else numerator, 10 ** (len(decimals) + max(-shift, 0)))


def _ungroup(whole: str) -> str | None:
    """The digits without separators; None where the commas do not stand at thousands."""
    if "," in whole:
        head, *rest = whole.replace("_", "").split(",")
        if not 1 <= len(head) <= 3 or any(len(group) != 3 for group in rest):
            return None
    if whole.endswith("_") or "__" in whole:
        return None
    return whole.replace("_", "").replace(",", "")


def _not_a_number(text: str, field: str) -> Problem:
    if not text.strip():
        return Problem(field, "is empty; write a number such as 8, 4M or 1_024")
    return Problem(field, f"is not a number: {quote(text)}; write one such as 8, 4M or 1_024")


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def quote(text: str) -> str:
    """What the person wrote, cut to a readable length, with control characters made visible."""
    shown = "".join(c if " " <= c != "\x7f" and c not in "\u2028\u2029" else "?" for c in text)
    return f"'{shown}'" if len(shown) <= 40 else f"'{shown[:37]}...'"


# Showing


def show_count(count: int) -> str:
    """`1,048,576`; beyond 100 digits `1.234e150`, since nobody reads the rest."""
    if abs(count) < 10**MAX_DIGITS:
        return f"{count:,}"
    return show_ratio(count, 1)


def show_signed(count: int) -> str:
    """`+12`, `-4`, `0`: a drift always says its direction."""
    return ("+" if count > 0 else "") + show_count(count)


def show_short(count: int) -> str:
    """At most three significant digits and a suffix, for axes and chips: `524k`, `1.05M`, `2.1T`."""
    for scale, suffix in ((1, ""), (10**3, "k"), (10**6, "M"), (10**9, "B"), (10**12, "T")):
        if 2 * abs(count) < 1999 * scale:  # below 999.5 of this unit
            return show_ratio(count, scale, 3) + suffix
    return show_ratio(count, 1, 3)


def show_percent(part: int, whole: int) -> str:
    """`part` in percent of `whole` with two decimals, half away from zero, never "-0.00". whole > 0."""
    hundredths = (20000 * abs(part) + whole) // (2 * whole)
    sign = "-" if part < 0 and hundredths else ""
    cents = str(hundredths % 100)
    return f"{sign}{hundredths // 100}.{'0' * (2 - len(cents))}{cents}"


def show_real(value: float, digits: int = 4) -> str:
    """A real number with at most `digits` significant digits, from the integers that the double holds."""
    if value != value or value in (math.inf, -math.inf):
        return str(value)
    exact = ratio_of(value)
    return show_ratio(exact.numerator, exact.denominator, digits)


def ratio_of(value: float) -> Ratio:
    """The very fraction that a finite double holds."""
    mantissa, exponent = math.frexp(value)
    exponent -= 53
    return Ratio(int(mantissa * 2**53) * 2 ** max(exponent, 0), 2 ** max(-exponent, 0))


def rounded(value: float, digits: int = 4) -> float:
    """A finite `value` with the significant digits that are shown, as a number for JSON."""
    if value == 0:
        return value
    exact = ratio_of(value)
    figure, exponent = significant(abs(exact.numerator), exact.denominator, digits)
    shown = float(decimal(figure, exponent - digits + 1))
    return -shown if value < 0 else shown


def decimal(figure: int, power: int) -> Ratio:
    """figure * 10**power"""
    return Ratio(figure * 10 ** max(power, 0), 10 ** max(-power, 0))


def rounded_ratio(ratio: Ratio) -> int | float:
    """The same of a ratio; beyond what a float holds an integer, which JSON takes at any size."""
    figure, _, exponent = show_ratio(ratio.numerator, ratio.denominator).partition("e")
    if int(exponent or 0) < 300:
        return rounded(float(ratio))
    whole, _, decimals = figure.partition(".")
    return int(whole + decimals) * int(10 ** (int(exponent) - len(decimals)))


def number(ratio: Ratio | None) -> int | float | None:
    """A ratio as a JSON number."""
    if ratio is None:
        return None
    return ratio.numerator if ratio.denominator == 1 else float(ratio)


def show_ratio(numerator: int, denominator: int, digits: int = 4) -> str:
    """`numerator / denominator` with at most `digits` significant digits, half away from zero.

    Plain from 0.0001 up to ten million, else `8e-5`. denominator > 0.
    """
    if numerator == 0:
        return "0"
    sign, numerator = ("-" if numerator < 0 else ""), abs(numerator)
    figure, exponent = significant(numerator, denominator, digits)
    text = str(figure)
    if -4 <= exponent < 0:
        return sign + ("0." + "0" * (-exponent - 1) + text).rstrip("0")
    if 0 <= exponent < digits:
        whole, decimals = text[: exponent + 1], text[exponent + 1 :].rstrip("0")
        return sign + show_count(int(whole)) + ("." + decimals if decimals else "")
    if digits <= exponent < 7:
        return sign + show_count(figure * 10 ** (exponent - digits + 1))
    decimals = text[1:].rstrip("0")
    return f"{sign}{text[0]}{'.' + decimals if decimals else ''}e{exponent}"


def significant(numerator: int, denominator: int, digits: int) -> tuple[int, int]:
    """(figure, exponent) of a positive fraction: figure has `digits` digits, half away from zero, the first of which
    counts 10**exponent.
    """
    exponent = _decimal_exponent(numerator, denominator)
    shift = digits - 1 - exponent
    scaled = numerator * 10 ** max(shift, 0)
    unit = denominator * 10 ** max(-shift, 0)
    figure = (2 * scaled + unit) // (2 * unit)
    if figure == 10**digits:  # 9.9996 became 10.00
        figure, exponent = figure // 10, exponent + 1
    return figure, exponent


def _decimal_exponent(numerator: int, denominator: int) -> int:
    """floor(log10(numerator / denominator)), exactly."""
    most = _digits(numerator) - _digits(denominator)
    reaches = numerator * 10 ** max(-most, 0) >= denominator * 10 ** max(most, 0)
    return most if reaches else most - 1


def _digits(count: int) -> int:
    """How many digits a positive integer has. `str` refuses thousands of them."""
    digits = 0
    while count >= 10**MAX_DIGITS:
        count, digits = count // 10**MAX_DIGITS, digits + MAX_DIGITS
    return digits + len(str(count))


def show_exact(ratio: Ratio) -> str:
    """Every digit of a ratio, as read_ratio reads it: `0.123456`; "" where that takes more than MAX_DIGITS digits."""
    places = 0
    while 10**places % ratio.denominator:
        places += 1
        if places > MAX_DIGITS:
            return ""
    if abs(ratio.numerator) >= 10**MAX_DIGITS:
        return ""
    whole, decimals = divmod(abs(ratio.numerator) * 10**places // ratio.denominator, 10**places)
    sign = "-" if ratio.numerator < 0 else ""
    return f"{sign}{whole}" + (f".{str(10**places + decimals)[1:]}" if places else "")


def show_bytes(count: int) -> str:
    """`26.2 GiB`: binary units (GiB is 2**30 bytes), three significant digits."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{show_ratio(count, scale, 3)} {unit}"
    return f"{count} bytes"
