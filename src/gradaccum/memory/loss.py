"""The end of the forward pass: the last norm, logits and loss. Bytes of one GPU."""

from __future__ import annotations

from gradaccum.memory.activations import AUTOGRAD, norm_bytes
from gradaccum.memory.ledger import Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.setup import Setup

LOSS = "transformers loss/loss_utils.py:ForCausalLMLoss; torch log_softmax and its backward"


def last_norm(setup: Setup) -> Line:
    """What stands between the last layer and the logits."""
    w, h = setup.width, setup.model.hidden
    norm = norm_bytes(setup.model, w, h) if setup.model.final_norm else 0
    return Line("last norm, input of the head", setup.tokens * (norm + w * h), "T (norm + w h)", AUTOGRAD)


def loss(setup: Setup) -> Line:
    """Logits in the dtype, and in fp32 a copy, its log-softmax and the gradient; in fp32 no copy is made."""
    each = 14 if setup.width == 2 else 12
    return Line("logits and loss", each * setup.tokens * setup.model.vocab, f"{each} T V", LOSS)
