"""The peaks of a tape, on operations small enough to count by hand."""

from __future__ import annotations

import pytest

from gradaccum.memory.peaks import Backward, Moment, forward, highest
from gradaccum.memory.tape import Sizes, Tape

LENGTH, H = 10, 8
ONE = LENGTH * H * 4
"""Bytes of a tensor of size h in fp32."""


@pytest.fixture
def tape():
    return Tape(Sizes(LENGTH, {"h": H, "f": 2 * H}))


def most(moments):
    return max(moment.bytes(1) for moment in moments)


def test_a_size_is_a_sum_of_multiples_of_letters():
    sizes = Sizes(LENGTH, {"h": H, "f": 2 * H, "a S": 40})
    assert [sizes.per_token(name) for name in ("h", "2 f + h", "a S", "7", "3 a S")] == [8, 40, 40, 7, 120]


def test_forward_a_tensor_dies_behind_its_last_use(tape):
    x = tape.new("h", 4)
    for _ in range(5):
        x = tape.scale(x)  # keeps nothing
    assert [each.bytes(1) for each in forward(tape)] == [ONE, 2 * ONE, 2 * ONE, 2 * ONE, 2 * ONE]


def test_forward_what_is_kept_stays(tape):
    x = tape.new("h", 4)
    for _ in range(5):
        x = tape.by_input(x)  # keeps its input
    # All five inputs, and the last result.
    assert most(forward(tape)) == 6 * ONE
    assert most(forward(tape, without={id(tape.operations[0].inputs[0].storage)})) == 5 * ONE


def test_backward_of_a_chain(tape):
    """At the last operation three inputs are kept, and two gradients there; then one is let go with each step."""
    x = tape.new("h", 4)
    for _ in range(3):
        x = tape.by_input(x)
    moments = Backward(tape).run(x)
    assert [(each.kept, each.moving) for each in moments] == [(3 * ONE, 2 * ONE), (2 * ONE, 2 * ONE), (ONE, 2 * ONE)]


def test_backward_of_a_residual_branch(tape):
    """x + f(x): the sum's gradient is that of both, so that x's own second one makes a new sum."""
    x = tape.new("h", 4)
    start = tape.scale(x)
    out = tape.add(start, tape.by_input(start))
    moments = Backward(tape).run(out)
    # One gradient for the sum and both of its inputs; f's input kept; then f's own, and the new sum of the two.
    assert (moments[0].kept, moments[0].moving) == (ONE, ONE)
    assert max(each.moving for each in moments) == 3 * ONE


def test_backward_what_a_formula_needs_stands_beside_a_sum_to_come(tape):
    """x ** 2 x: the power's own product and factor, its result, and the gradient that it will be added to."""
    x = tape.new("h", 4)
    start = tape.scale(x)
    out = tape.mul(tape.power(start), start)
    moments = Backward(tape).run(out)
    # The product's two gradients; at the power its two own, and its result beside that of the other branch.
    assert max(each.moving for each in moments) == 5 * ONE


def test_backward_parts_of_a_projection_are_put_together(tape):
    x = tape.new("h", 4)
    whole = tape.run((x,), "f", 4)
    parts = [tape.view(whole, "h") for _ in range(2)]
    out = tape.mul(*parts)
    moments = Backward(tape).run(out)
    # Two parts' gradients, and the whole beside them.
    assert max(each.moving for each in moments) == 4 * ONE


def test_what_a_formula_needs_for_itself_is_there_while_it_runs(tape):
    x = tape.new("h", 2)
    out = tape.softmax(x, 4, fused=True)
    (moment,) = Backward(tape).run(out)
    assert moment.kept == ONE  # the result in fp32
    assert moment.moving == ONE + ONE // 2 + ONE  # gradient, the input's in 16 bits, and their product


def test_a_frozen_chain_keeps_nothing(tape):
    x = tape.new("h", 4, grad=False)
    out = tape.mul(tape.by_input(tape.power(x)), x)
    assert tape.kept() == []
    assert not out.grad
    assert tape.weighted(x, 4, trained=True).grad
    assert tape.kept() == [x.storage]


def test_held_storages_count_to_the_end(tape):
    x = tape.new("h", 4)
    middle = tape.scale(x)
    out = tape.scale(middle)
    assert [each.kept for each in Backward(tape, held=[middle.storage]).run(out)] == [ONE, ONE]


def test_autocast_reads_16_bits_and_keeps_the_cast():
    tape = Tape(Sizes(LENGTH, {"h": H, "f": 2 * H}), low=2)
    x = tape.new("h", 4)
    product = tape.matmul(x, x, "f")
    assert product.width == 2
    assert [each.bytes for each in tape.kept()] == [ONE // 2, ONE // 2]  # each read has a cast of its own
    assert tape.power(product).width == 4


def test_only_the_highest_moments_are_kept():
    low, steep, fixed = Moment(1, 0, 1, 0), Moment(5, 0, 5, 0), Moment(1, 50, 0, 50)
    found = highest([low, steep, fixed, steep])
    assert set(found) == {steep, fixed}
    for count in (1, 5, 100):
        assert max(m.bytes(count) for m in found) == max(m.bytes(count) for m in (low, steep, fixed))
