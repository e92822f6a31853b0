"""The modules that layers are made of, on a tape: linear layers (plain, with an adapter, quantised), norms, attention.

Each is written as its library runs it, and so are the casts: PyTorch's nn, Transformers' RMSNorm and attention, PEFT's
LoRA layer (peft/tuners/lora/layer.py:Linear, bnb.py:Linear4bit), bitsandbytes' autograd functions
(bitsandbytes/autograd/_functions.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.memory.lora import is_target
from gradaccum.memory.tape import Sizes, Tape, Tensor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.catalog.models import Model

COPIES = "low-precision copies of weights"
"""The part of what autocast's cache holds: casts of trained weights (aten/src/ATen/autocast_mode.cpp:cached_cast)."""


@dataclass(frozen=True)
class Recipe:
    """How a layer is trained, as far as its tensors are concerned.

    weights: bytes of one element of the base's weights, its activations' width without autocast. low: bytes of
    autocast's type, 0 without it. half: the 16-bit type is fp16. rank: of the adapters, 0 where all weights are
    trained; targets: a word of lora.TARGETS; adapters: bytes of their elements. quantised: "", "4bit", "8bit".
    """

    weights: int
    low: int = 0
    half: bool = False
    attention: str = "flash"
    rank: int = 0
    targets: str = ""
    adapters: int = 0
    quantised: str = ""

    @property
    def trained(self) -> bool:
        """Whether the base's weights want gradients."""
        return not self.rank

    @property
    def others(self) -> int:
        """Bytes of an element of what is not quantised: norms, embeddings, the head, biases.

        prepare_model_for_kbit_training casts them to fp32 (peft/utils/other.py).
        """
        return 4 if self.quantised else self.weights


@dataclass(frozen=True)
class Weight:
    """The weight of one linear layer. name: as in Transformers' modules; bias, adapted: whether it has one."""

    name: str
    rows: int  # outputs
    columns: int  # inputs
    bias: bool = False
    adapted: bool = False

    @property
    def count(self) -> int:
        """Elements, without the bias."""
        return self.rows * self.columns


class Modules:
    """Puts modules on a tape. `weights` are the linear layers that it met, in order."""

    def __init__(self, model: Model, recipe: Recipe, tape: Tape) -> None:
        self.model = model
        self.recipe = recipe
        self.tape = tape
        self.weights: list[Weight] = []

    def linear(self, x: Tensor, size: str, name: str, bias: bool = False) -> Tensor:
        """The linear layer `name`, with its adapter if it is a target."""
        sizes = self.tape.sizes
        recipe, part = self.recipe, self.tape.part
        adapted = bool(recipe.rank) and is_target(self.model.family, recipe.targets, name, part)
        weight = Weight(name, sizes.per_token(size), sizes.per_token(x.size), bias, adapted)
        self.weights.append(weight)
        result = self._quantised(x, size, weight) if recipe.quantised else self._plain(x, size, weight)
        return self._adapted(x, result, size) if adapted else result

    def _plain(self, x: Tensor, size: str, weight: Weight) -> Tensor:
        return self.product(x, size, weight.count, self.recipe.weights, self.recipe.trained, weight.bias)

    def product(self, x: Tensor, size: str, count: int, width: int, trained: bool, bias: bool = False) -> Tensor:
        """`F.linear`: the input is kept for a trained weight, a low-precision copy of the weight for x's gradient."""
        tape = self.tape
        x = tape.lower(x)
        keep = []
        gradient = count * width if trained else 0
        if tape.low and width == 4:
            copy = tape.new("0", 1, grad=False, fixed=count * tape.low).storage
            copy.part = COPIES if trained else "copies of frozen weights"
            keep = [copy] if x.grad else []
            gradient += count * tape.low if trained else 0
            width = tape.low
        saved = [x] if trained else []
        product = tape.run(
            (x,), size, max(x.width, width), saved=saved, keep=keep, trained=trained, back_fixed=gradient
        )
        if not bias:
            tape.operations[-1].kind = "mm"
        return product

    def _adapted(self, x: Tensor, result: Tensor, size: str) -> Tensor:
        """result + B(A(x)) * scaling, in the adapter's type, and back to the layer's."""
        tape, recipe = self.tape, self.recipe
        rank = str(recipe.rank)
        converts = not (recipe.quantised and tape.low)  # the quantised layers leave it to autocast
        if converts:
            x = tape.cast(x, recipe.adapters)
        inputs, outputs = tape.sizes.per_token(x.size), tape.sizes.per_token(size)
        inner = self.product(x, rank, recipe.rank * inputs, recipe.adapters, trained=True)
        update = tape.scale(self.product(inner, size, recipe.rank * outputs, recipe.adapters, trained=True))
        if recipe.quantised and converts:
            update = tape.cast(update, result.width)
        return tape.cast(tape.add(result, update), result.width)

    def _quantised(self, x: Tensor, size: str, weight: Weight) -> Tensor:
        """Neither form keeps the weight that it dequantises, forward (4 bits) and back.

        4 bits: in the type of the computation; the input is not kept. 8 bits: the product is that of integers, in the
        input's type, and the input is kept.
        """
        tape, width = self.tape, x.width
        if self.recipe.quantised == "8bit":
            product = tape.run((x,), size, width, saved=[x], back_fixed=weight.count * width)
            tape.operations[-1].forward = 3 * x.storage.bytes // width  # fp16, then one byte
            return product
        compute = tape.cast(x, self.recipe.weights)
        whole = weight.count * self.recipe.weights
        product = tape.run((compute,), size, compute.width, back_fixed=whole, forward_fixed=whole)
        return tape.cast(product, width)

    # Norms

    def norm(self, x: Tensor, groups: str = "1") -> Tensor:
        """The family's norm over the features of each group, such as a head: "1" is one group for each token."""
        if self.model.norm != "rms":
            return self.layer_norm(x, groups)
        tape, trained, width = self.tape, self.recipe.trained, x.width
        wide = tape.cast(x, 4)
        mean = tape.mean(tape.power(wide), groups)
        if self.model.family.startswith("gemma"):
            normed = tape.mul(wide, tape.by_output(tape.scale(mean)))
            plus = tape.new("0", 1, grad=False, fixed=4 * tape.sizes.per_token(x.size) // tape.sizes.per_token(groups))
            if normed.grad:
                tape.operations[-1].saved.append(plus.storage)  # 1 + weight, made anew in fp32
            return tape.cast(tape.weighted(normed, 4, trained), width)
        normed = tape.mul(wide, tape.by_output(tape.scale(mean)))
        if self.model.family == "olmo2":
            return tape.cast(tape.weighted(normed, self.recipe.others, trained), width)
        return tape.weighted(tape.cast(normed, width), self.recipe.others, trained)

    def layer_norm(self, x: Tensor, groups: str = "1") -> Tensor:
        """One kernel: its input, mean and 1/deviation in fp32 (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""
        tape = self.tape
        x = tape.upper(x)
        statistics = [tape.new(groups, 4, grad=False), tape.new(groups, 4, grad=False)]
        trained = self.recipe.trained and self.model.norm != "bare"
        return tape.run((x,), x.size, x.width, saved=[x, *statistics], trained=trained)

    # Attention

    def attention(self, q: Tensor, k: Tensor, v: Tensor, out: str = "q", upcast: bool = True) -> Tensor:
        """From queries, keys and values to the output, heads side by side.

        A fused kernel keeps what it reads, its output and the log-sum-exp; the eager form keeps the scores.
        """
        if self.recipe.attention == "eager":
            return self.eager(q, k, v, out, upcast)
        if self.recipe.attention == "math":
            return self._math(q, k, v, out)
        tape, efficient = self.tape, self.recipe.attention == "efficient"
        if efficient:
            k, v = self._repeated(k, q.size), self._repeated(v, out)
        q, k, v = tape.lower(q), tape.lower(k), tape.lower(v)
        lse = tape.new("a", 4, grad=False)
        if efficient:
            # aten/src/ATen/native/transformers/cuda/attention.cu: rows rounded up to 32; attention_backward.cu: delta
            lse.storage.bytes = 4 * self.model.heads * (-(-tape.sizes.length // 32) * 32)
        back = lse.storage.bytes if efficient else self._flash_backward(q)
        output = tape.run((q, k, v), out, q.width, saved=[q, k, v, lse], keeps_output=True, back=back)
        tape.operations[-1].kind = "attention"
        return output

    def _flash_backward(self, q: Tensor) -> int:
        """Bytes that the backward kernel makes for itself, of one sequence.

        dq in fp32, a row term, and keys' and values' gradients for every query head where these share them
        (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp:mha_bwd).
        """
        model, length = self.model, -(-self.tape.sizes.length // 128) * 128
        shared = 2 * q.width * self.tape.sizes.length * model.heads * model.head_dim
        own = 4 * length * model.heads * (-(-model.head_dim // 32) * 32 + 1)
        return own + (shared if model.kv_heads < model.heads else 0)

    def _repeated(self, x: Tensor, size: str) -> Tensor:
        """Keys or values for every query head."""
        same = self.tape.sizes.per_token(x.size) == self.tape.sizes.per_token(size)
        return x if same else self.tape.join((x,), size)

    def _math(self, q: Tensor, k: Tensor, v: Tensor, out: str) -> Tensor:
        """What PyTorch runs where no fused kernel can: in fp32, on scaled queries and scaled, repeated keys.

        aten/src/ATen/native/transformers/attention.cpp:_scaled_dot_product_attention_math
        """
        tape = self.tape
        q, k, v = tape.lower(q), tape.lower(k), tape.lower(v)
        width = q.width
        wide = [tape.cast(each, 4) for each in (q, k, v)]
        queries = tape.scale(wide[0])
        keys, values = tape.scale(self._repeated(wide[1], q.size)), self._repeated(wide[2], out)
        scores = tape.run((queries, keys), "a S", 4, saved=[queries, keys])
        weights = tape.softmax(scores, 4, fused=False)
        product = tape.run((weights, values), out, 4, saved=[weights, values])
        return tape.join((tape.cast(product, width),), out)

    def by_token(self, x: Tensor) -> Tensor:
        """The attention's output, copied where the heads lie one behind the other.

        The flash kernel's has the memory order of the queries; the memory-efficient one's is token by token.
        """
        return self.tape.join((x,), x.size) if self.recipe.attention == "flash" else x

    def eager(self, q: Tensor, k: Tensor, v: Tensor, out: str, upcast: bool, scaled: bool = True) -> Tensor:
        """Scores, mask, softmax and product, each a tensor. upcast: the softmax is asked for in fp32.

        scaled: by an operation of its own, after the product. Keys and values are repeated for grouped queries, and
        `torch.matmul` copies what is not contiguous, so that a part of a larger tensor becomes a tensor of its own.
        """
        tape, model = self.tape, self.model
        q, k, v = self._own(q, q.size), self._own(k, q.size), self._own(v, out)
        scores = tape.matmul(q, k, "a S")
        if scaled:
            scores = tape.scale(scores)
        if model.family == "gemma2":
            scores = tape.scale(tape.by_output(tape.scale(scores)))
        scores = tape.run((scores,), "a S", scores.width, through=True)  # the mask is added
        width = 4 if upcast or tape.low else scores.width
        fused = width == 4 and scores.width == 2 and self.recipe.half
        probabilities = tape.softmax(scores, width, fused)
        probabilities = tape.cast(probabilities, q.width if upcast else v.width)
        probabilities = tape.dropout(probabilities, model.attention_dropout)
        return tape.join((tape.matmul(probabilities, v, out),), out)

    def _own(self, x: Tensor, size: str) -> Tensor:
        """x as a tensor of its own, of that size."""
        if x.storage.bytes == x.bytes == self.tape.sizes.per_token(size) * x.width * self.tape.sizes.length:
            return x
        return self.tape.join((x,), size)


def sizes_of(model: Model, length: int) -> Sizes:
    """The letters of a model: h hidden, f MLP width, a heads, q and kv the widths of queries and of keys, S length."""
    letters = {
        "h": model.hidden,
        "f": model.ffn,
        "a": model.heads,
        "b": model.kv_heads,
        "q": model.heads * model.head_dim,
        "kv": model.kv_heads * model.head_dim,
        "v": model.heads * model.value_dim,
        "a S": model.heads * length,
        "V": model.vocab,
        "e": model.embedding_width,
    }
    return Sizes(length, letters)
