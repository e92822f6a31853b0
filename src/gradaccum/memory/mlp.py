"""The MLP of a layer, on a tape: with a gate or without, and the activation functions."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.modules import Modules
    from gradaccum.memory.tape import Tensor

_MLP_NAMES = {
    "gpt2": ("c_fc", "mlp.c_proj"),
    "bloom": ("dense_h_to_4h", "dense_4h_to_h"),
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
    "opt": ("fc1", "fc2"),
    "phi": ("fc1", "fc2"),
    "vit": ("fc1", "fc2"),
    "bert": ("intermediate.dense", "output.dense"),
    "roberta": ("intermediate.dense", "output.dense"),
}


def gated_mlp(m: Modules, x: Tensor, inner: str = "f", part: str = "MLP") -> Tensor:
    """down(act(gate(x)) * up(x)). Phi-3 has gate and up in one matrix."""
    tape, bias = m.tape, m.model.mlp_bias
    tape.part = part
    if m.model.family == "phi3":
        both = m.linear(x, "2 f", "gate_up_proj")
        gate, up = tape.view(both, "f"), tape.view(both, "f")
        return m.linear(tape.mul(up, activation(m, gate)), "h", "down_proj")
    gate = activation(m, m.linear(x, inner, "gate_proj", bias))
    return m.linear(tape.mul(gate, m.linear(x, inner, "up_proj", bias)), "h", "down_proj", bias)


def activation(m: Modules, x: Tensor) -> Tensor:
    """The activation function. gelu_new is written out in steps (transformers/activations.py:NewGELUActivation)."""
    tape, name = m.tape, m.model.activation
    if name == "relu":
        return tape.by_output(x)
    if name != "gelu_new":
        return tape.by_input(x)
    half = tape.scale(x)
    inner = tape.scale(tape.add(x, tape.scale(tape.power(x))))
    return tape.mul(half, tape.scale(tape.by_output(inner)))


def plain_mlp(m: Modules, x: Tensor) -> Tensor:
    """out(act(in(x)))."""
    m.tape.part = "MLP"
    into, out = _MLP_NAMES[m.model.family]
    bias = m.model.mlp_bias
    return m.linear(activation(m, m.linear(x, "f", into, bias)), "h", out, bias)
