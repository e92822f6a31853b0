"""Reading and showing numbers, against Python's decimal module and its own parsing."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum import units
from gradaccum.errors import InputError
from gradaccum.units import Ratio, ratio_of, read_bytes, read_count, read_ratio, read_real, rounded


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4M", 4_000_000), ("2k", 2000), ("2Ki", 2048), ("0.5M", 500_000), ("1_024", 1024), ("1,024", 1024),
        ("1e6", 10**6), ("1.5e3", 1500), ("2^19", 524_288), ("2**19", 524_288), ("16x8", 128), ("16*8", 128),
        ("16 \u00d7 8", 128), (" 7 ", 7), ("+7", 7), ("4 M", 4_000_000), ("3T", 3 * 10**12), ("2B", 2 * 10**9),
        ("1Gi", 2**30), ("1e-3M", 1000), ("12,345,678", 12_345_678), ("9" * 100, int("9" * 100)), ("0", 0), ("2.0", 2),
    ],
)  # fmt: skip
def test_counts(text, count):
    assert read_count(text) == count


@pytest.mark.parametrize(
    ("text", "words", "nearest"),
    [
        ("", "is empty", ()),
        ("  ", "is empty", ()),
        ("four", "not a number", ()),
        ("4.5", "whole number", ("4", "5")),
        ("0.2", "whole number", ("1",)),
        ("1.024", "whole number", ("1", "2", "1024")),
        ("-3", "at least 1, not -3", ("1",)),
        ("0", "at least 1, not 0", ("1",)),
        ("1,02", "not a number", ()),
        ("1__0", "not a number", ()),
        ("1_", "not a number", ()),
        ("5q", "unknown suffix 'q'", ("5",)),
        (".q", "not a number", ()),
        ("\uff14", "not a number", ()),
        ("\u0664", "not a number", ()),
        ("nan", "not a number", ()),
        ("inf", "not a number", ()),
        ("0x10", "at least 1, not 0", ("1",)),
        ("1e", "unknown suffix 'e'", ("1",)),
        ("2^x", "not a number", ()),
        ("2^", "not a number", ()),
        ("x8", "empty", ()),
        ("9" * 101, "too many digits", ()),
        ("1e999", "too many digits", ()),
        ("1e99999999", "too many digits", ()),
        ("9^999", "too many digits", ()),
        ("1" * 201, "too long", ()),
        ("<script>", "not a number: '<script>'", ()),
        ("a\x00b\n" + "c" * 60, "not a number: 'a?b?ccc", ()),
    ],
)
def test_what_is_no_count(text, words, nearest):
    with pytest.raises(InputError) as error:
        read_count(text, "micro_batch", 1)
    (problem,) = error.value.problems
    assert words in problem.message or text == "x8"
    assert problem.nearest == nearest
    assert problem.field == "micro_batch"


@given(st.integers(0, 10**99))
def test_counts_with_separators_read_back(count):
    assert read_count(f"{count:,}") == read_count(f"{count:_}") == read_count(str(count)) == count


def test_ratios_and_reals():
    assert read_ratio("1.5") == Ratio(3, 2)
    assert read_ratio("30 %") == Ratio(3, 10)
    assert read_ratio("-1") == Ratio(-1)
    assert read_real("3e-4") == 0.0003
    assert read_real("1e-50") == 1e-50
    with pytest.raises(InputError):
        read_real("1e400")
    with pytest.raises(InputError):
        read_ratio("%")


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), st.integers(0, 10**6))
def test_ratio_arithmetic(numerator, denominator, count):
    ratio, fraction = Ratio(numerator, denominator), Fraction(numerator, denominator)
    assert (ratio.numerator, ratio.denominator) == (fraction.numerator, fraction.denominator)
    assert ratio.floor_of(count) == (fraction * count).__floor__()
    assert ratio.ceil_of(count) == (fraction * count).__ceil__()
    assert float(ratio) == numerator / denominator
    assert ratio == Ratio(fraction.numerator, fraction.denominator)
    assert hash(ratio) == hash(Ratio(2 * numerator, 2 * denominator))
    assert ratio != "x"
    assert repr(ratio).startswith("Ratio(")


@given(st.integers(-(10**99), 10**99), st.integers(0, 60), st.integers(0, 60))
def test_an_exact_text_keeps_every_digit(numerator, twos, fives):
    text = units.show_exact(Ratio(numerator, 2**twos * 5**fives))
    assert Fraction(text) == Fraction(numerator, 2**twos * 5**fives)
    assert set(text) <= set("-.0123456789")


@pytest.mark.parametrize(
    "ratio", [Ratio(1, 3), Ratio(1, 10**101), Ratio(1, 2**300), Ratio(10**100), Ratio(-(10**5000))]
)
def test_no_text_of_a_hundred_digits_is_exact(ratio):
    assert units.show_exact(ratio) == ""


@given(st.integers(1, 10**700), st.integers(1, 10**30))
def test_a_rounded_ratio_is_a_number_at_any_size(numerator, denominator):
    found = units.rounded_ratio(Ratio(numerator, denominator))
    exact = Fraction(numerator, denominator)
    assert abs(Fraction(found) - exact) * 1999 <= exact  # half of the fourth digit
    assert json.loads(json.dumps(found)) == found


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**30), st.integers(1, 9))
def test_significant_digits_are_those_of_decimal(numerator, denominator, digits):
    shown = units.show_ratio(numerator, denominator, digits).replace(",", "")
    with localcontext() as context:
        context.prec = 80
        exact = Decimal(numerator) / Decimal(denominator)
        context.prec, context.rounding = digits, "ROUND_HALF_UP"
        assert Decimal(shown) == +exact


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_reals_show_the_double_that_they_are(value):
    with localcontext() as context:
        context.prec, context.rounding = 4, "ROUND_HALF_UP"
        assert Decimal(units.show_real(value).replace(",", "")) == +Decimal(value)
    assert units.show_real(float("inf")) == "inf"
    assert units.show_real(float("nan")) == "nan"


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "0.0003"), (8e-5, "8e-5"), (2.0, "2"), (1234.5, "1,235"), (123456.0, "123,500"), (1.5e7, "1.5e7"),
     (-0.5, "-0.5"), (0.0, "0")],
)  # fmt: skip
def test_reals(value, text):
    assert units.show_real(value) == text


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**12))
def test_percent(part, whole):
    with localcontext() as context:
        context.prec = 60
        exact = (Decimal(part) * 100 / Decimal(whole)).quantize(Decimal("0.01"), rounding="ROUND_HALF_UP")
    assert units.show_percent(part, whole) == str(exact).replace("-0.00", "0.00")


@given(st.integers(0, 10**16))
def test_short_counts_keep_three_digits(count):
    shown = units.show_short(count)
    scale = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}.get(shown[-1], 1)
    value = Fraction(shown.rstrip("kMBT").replace(",", "")) * scale
    assert abs(value - count) <= Fraction(count, 199)
    assert len(shown) <= 7


def test_the_other_ways_to_show():
    assert units.show_count(1048576) == "1,048,576"
    assert units.show_count(10**150) == "1e150"
    assert [units.show_signed(n) for n in (12, -4, 0)] == ["+12", "-4", "0"]
    assert [units.show_short(n) for n in (999, 524_288, 999_999, 1_048_576)] == ["999", "524k", "1M", "1.05M"]
    assert [units.show_bytes(n) for n in (512, 2**20, 28 * 10**9)] == ["512 bytes", "1 MiB", "26.1 GiB"]
    assert units.rounded(0.00083516) == 0.0008352
    assert units.rounded(1234567.0) == 1235000.0


@given(st.integers(-(10**90), 10**90), st.integers(1, 10**90))
def test_a_ratio_becomes_the_nearest_double(numerator: int, denominator: int):
    assert float(Ratio(numerator, denominator)) == numerator / denominator  # correctly rounded in CPython


@given(st.integers(1, 2**70), st.integers(1, 2**70), st.integers(1000, 1080))
def test_a_ratio_becomes_the_nearest_double_below_the_normal_ones_too(numerator: int, denominator: int, shift: int):
    assert float(Ratio(numerator, denominator << shift)) == numerator / (denominator << shift)


def test_a_ratio_beyond_every_double_is_refused():
    with pytest.raises(OverflowError):
        float(Ratio(10**400))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_is_a_fraction(value: float):
    exact = ratio_of(value)
    assert (exact.numerator, exact.denominator) == value.as_integer_ratio()


@given(st.floats(1e-300, 1e300), st.sampled_from([1, -1]))
def test_rounding_keeps_four_significant_digits(value: float, sign: int):
    with localcontext() as context:
        context.prec, context.rounding = 4, ROUND_HALF_UP
        assert rounded(sign * value) == sign * float(+Decimal(value))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("80GB", 80 * 10**9), ("80 gb", 80 * 10**9), ("80GiB", 80 * 2**30), ("24576MiB", 24 * 2**30),
        ("1.5 TiB", 3 * 2**39), ("80G", 80 * 10**9), ("80Gi", 80 * 2**30), ("512", 512), ("512 bytes", 512),
        ("512B", 512), ("1 byte", 1), ("1_024", 1024), ("8x80GiB", 640 * 2**30),
        ("23.65GiB", 25_393_994_137),  # 25,393,994,137.6
    ],
)  # fmt: skip
def test_bytes(text, count):
    assert read_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "80bb", "80 B B", "eighty GB", "80XB", "1,0GB", "80%", "9" * 300])
def test_no_bytes(text):
    with pytest.raises(InputError) as caught:
        read_bytes(text, "gpu")
    (problem,) = caught.value.problems
    assert problem.field == "gpu"
    assert problem.message.startswith("is no number of bytes: ")
    assert len(problem.message) < 120


def test_too_few_bytes():
    with pytest.raises(InputError, match=r"gpu: must be at least 1024, not 512; nearest: 1024"):
        read_bytes("512B", "gpu", 1024)


@given(st.integers(0, 10**18))
def test_shown_and_read_bytes_are_the_same_to_three_digits(count: int):
    assert abs(read_bytes(units.show_bytes(count)) - count) <= count * 5e-3 + 1
