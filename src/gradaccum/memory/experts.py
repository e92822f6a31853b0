"""A mixture of experts: router, routed experts, shared experts.

How many rows each expert gets is not known before the run. With Transformers' `grouped_mm` experts, the default,
it does not matter on one GPU: all rows lie in one tensor, tokens x experts per token of them, whatever the routing
(integrations/moe.py:grouped_mm_experts_forward).
"""

from __future__ import annotations

from gradaccum.memory.mlp import gated_mlp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.modules import Modules
    from gradaccum.memory.tape import Storage, Tensor


GROUPS, GROUPS_CHOSEN = 8, 4
"""DeepSeek-V3 chooses groups of experts first: n_group and topk_group, the defaults of its config class."""


def experts(m: Modules, x: Tensor) -> Tensor:
    """The routed experts of one layer, and the shared ones beside them."""
    tape, model = m.tape, m.model
    tape.part = "router"
    weights = _router(m, x)
    tape.part = "experts"
    out = _grouped(m, x, weights)
    if not model.shared_experts:
        return out
    return tape.add(out, gated_mlp(m, x, str(model.shared_experts * model.expert_ffn), "shared experts"))


def _router(m: Modules, x: Tensor) -> Tensor:
    """The weight of each expert that a token chose."""
    tape, model, family = m.tape, m.model, m.model.family
    count, chosen = str(model.experts), str(model.experts_per_token)
    size = model.experts * model.hidden
    in_full = family.startswith("deepseek")  # input and weight are cast to fp32
    logits = m.product(
        tape.cast(x, 4) if in_full else x, count, size, 4 if in_full else m.recipe.weights, m.recipe.trained
    )
    if in_full and m.recipe.weights < 4 and x.grad:
        tape.operations[-1].saved.append(tape.new("0", 1, grad=False, fixed=4 * size).storage)
    places = tape.new(chosen, 8, grad=False)
    if family == "deepseek_v3":
        scores = tape.by_output(logits)
        grouped = [tape.new(f"{2 * GROUPS}", 8, grad=False), tape.new(f"{GROUPS_CHOSEN}", 8, grad=False)]
        tape.run((scores,), str(GROUPS), scores.width, saved=[*grouped, tape.new(count, 1, grad=False)])
        picked = tape.run((scores,), chosen, scores.width, saved=[places])
        total = tape.scale(tape.mean(picked, "1"))
        return tape.scale(tape.mul(picked, total))
    scores = tape.softmax(logits, 4, fused=False)
    picked = tape.run((scores,), chosen, 4, saved=[places])
    if family == "deepseek_v2":
        return tape.scale(picked)
    return tape.cast(tape.mul(picked, tape.mean(picked, "1")), 4 if family == "mixtral" else logits.width)


def _grouped(m: Modules, x: Tensor, weights: Tensor) -> Tensor:
    tape, model = m.tape, m.model
    chosen, inner = model.experts_per_token, model.expert_ffn
    rows, wide, narrow = f"{chosen} h", str(2 * chosen * inner), str(chosen * inner)
    places = [tape.new(str(chosen), 8, grad=False) for _ in range(3)]  # whose token, the order, and the way back
    ends = tape.new("0", 1, grad=False, fixed=4 * model.experts).storage
    picked = tape.run((x,), rows, x.width, saved=places[:1])
    scale = tape.run((weights,), weights.size, weights.width, saved=places[1:2])
    count = model.experts * inner * model.hidden
    both = _grouped_product(m, picked, wide, 2 * count, ends)
    gate, up = tape.view(both, narrow), tape.view(both, narrow)
    out = _grouped_product(m, tape.mul(tape.by_input(gate), up), rows, count, ends)
    weighted = tape.mul(out, scale)
    weighted = tape.run((weighted,), rows, weighted.width, saved=places[2:])
    return tape.cast(tape.run((weighted,), "h", weighted.width), x.width)


def _grouped_product(m: Modules, x: Tensor, size: str, count: int, ends: Storage) -> Tensor:
    """`grouped_mm`, which autocast leaves alone: the input takes the weight's type."""
    tape, recipe = m.tape, m.recipe
    x = tape.cast(x, recipe.weights)
    saved = [x] if recipe.trained else []
    gradient = count * x.width if recipe.trained else 0
    return tape.run((x,), size, x.width, saved=saved, keep=[ends], trained=recipe.trained, back_fixed=gradient)
