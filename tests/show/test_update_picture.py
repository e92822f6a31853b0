"""The picture of one update, read back from its SVG and counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum.show.update_picture import update_picture, update_words
from tests.show.drawing import boxes, description, inside, read, texts


def drawn(narrow=False, **inputs):
    return read(update_picture(gradaccum.plan(**inputs), narrow))


def rows_of(cells):
    return sorted({cell.y for cell in cells})


def test_every_rank_and_micro_step_has_a_forward_and_a_backward():
    picture = drawn(micro_batch=2, num_gpus=3, target_batch=24)  # 4 micro-steps on 3 GPUs
    forward, backward, sums = (boxes(picture, kind) for kind in ("forward", "backward", "sum"))
    assert len(forward) == len(backward) == len(sums) == 3 * 4
    assert len(rows_of(forward)) == 3
    for one, two in zip(forward, backward):
        assert two.x == one.x + one.width, "backward follows forward"
        assert 1.8 < two.width / one.width < 2.3, "and takes about twice as long"


def test_the_local_sum_grows_with_every_micro_step_up_to_the_last():
    sums = boxes(drawn(micro_batch=1, num_gpus=2, target_batch=14), "sum")  # 7 micro-steps
    for y in {box.y + box.height for box in sums}:
        heights = [box.height for box in sorted(sums, key=lambda box: box.x) if box.y + box.height == y]
        assert heights == sorted(set(heights))
        assert len(heights) == 7


def test_ranks_synchronise_once_after_the_last_micro_step_and_then_the_optimizer_steps():
    picture = drawn(micro_batch=2, num_gpus=3, target_batch=24)
    (sync,), (optimizer,) = boxes(picture, "sync"), boxes(picture, "optimizer")
    backward = boxes(picture, "backward")
    assert max(box.x + box.width for box in backward) <= sync.x
    assert sync.x + sync.width <= optimizer.x
    assert sync.y <= min(box.y for box in backward)
    assert sync.y + sync.height >= max(box.y for box in backward)
    assert "gradients stay local" in " ".join(texts(picture))


def test_one_rank_has_nothing_to_synchronise():
    picture = drawn(micro_batch=2, num_gpus=1, target_batch=8)
    assert boxes(picture, "sync") == []
    assert "synchronise" not in " ".join(texts(picture)) + description(picture)


@pytest.mark.parametrize("narrow", [False, True])
def test_many_ranks_and_micro_steps_are_abbreviated_and_counted(narrow):
    picture = drawn(narrow, micro_batch=1, num_gpus=64, target_batch=6400)
    rows = len(rows_of(boxes(picture, "forward")))
    assert rows < 10
    assert f"{64 - rows} more GPUs" in texts(picture)
    assert {"1", "2", "100", "\u2026", "GPU 0", "GPU 63"} <= set(texts(picture))
    assert "Each of 64 GPUs runs 100 micro-steps of 1 sequence," in description(picture)


def test_exact_ends_with_smaller_cells_shared_out_over_the_ranks():
    # 22 = 2 x 8 + 6 on 4 ranks of 2: in the last micro-step the first two hold 2, the others 1.
    picture = drawn(micro_batch=2, num_gpus=4, target_batch=22, rounding="exact")
    last = max(box.x for box in boxes(picture, "forward"))
    backward = boxes(picture, "backward")
    full = max(box.width for box in backward)
    widths = [box.width for box in backward if box.x > last]
    assert [width == full for width in widths] == [True, True, False, False]
    assert texts(picture).count("1") == 1 + 2  # the micro-step's number, and the shares of two ranks
    assert "The last micro-step holds 6 sequences, at most 2 on a GPU." in description(picture)


def test_exact_marks_ranks_of_weight_0():
    picture = drawn(micro_batch=4, num_gpus=4, target_batch=18, rounding="exact")  # 16 + 2
    assert texts(picture).count("weight 0") == 2
    assert len(boxes(picture, "idle")) == 2
    assert "2 run one repeated sequence with weight 0" in description(picture)


def test_a_rank_of_several_gpus_is_called_a_rank():
    picture = drawn(micro_batch=2, num_gpus=384, tensor_parallel=4, pipeline_parallel=12, target_batch=2048)
    assert "rank 0" in texts(picture)
    assert "GPU 0" not in texts(picture)
    assert "A rank is 48 GPUs" in description(picture)


def test_words_of_one_micro_step_on_one_gpu():
    assert update_words(gradaccum.plan(micro_batch=8, num_gpus=1, target_batch=8)) == (
        "One GPU runs 1 micro-step of 8 sequences, forward and backward. Then the optimizer updates the weights."
    )


COUNTS = st.one_of(st.integers(1, 40), st.integers(1, 10**100 - 1))


@given(COUNTS, COUNTS, COUNTS, st.sampled_from(["round", "ceil", "floor", "exact"]), st.booleans())
def test_every_plan_is_drawn_within_its_frame(micro_batch, num_gpus, target_batch, rounding, narrow):
    picture = drawn(narrow, micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target_batch, rounding=rounding)
    assert int(picture.get("width")) <= (360 if narrow else 960)
    assert inside(picture)
    assert all(len(text) < 60 for text in texts(picture))
