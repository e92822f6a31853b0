"""A layer as the operations that it runs, and what autograd makes of them: what it keeps, and what its peaks are.

A `Tape` is given the operations of one layer in order, as a forward pass calls them. From each one's rule (which of
its inputs and outputs the backward formula reads: torch/csrc/autograd, tools/autograd/derivatives.yaml; which types
autocast casts to: aten/src/ATen/autocast_mode.h) follow the storages that autograd saves, each counted once, and a
walk back over them gives the peak of the backward pass. Bytes are those of one sequence, beside fixed ones that do not
grow with the batch (casts of weights, a weight dequantised).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Storage:
    """One block of memory. bytes: of one sequence; fixed: whatever the batch; part: of the layer."""

    __slots__ = ("_terms", "_width", "bytes", "fixed", "part")

    def __init__(self, count: int, fixed: int, part: str, terms: Sequence[tuple[str, int]], width: int) -> None:
        self.bytes = count
        self.fixed = fixed
        self.part = part
        self._terms = terms
        self._width = width

    @property
    def coefficients(self) -> dict[str, int]:
        """Bytes of one token by letter."""
        return {letter: multiple * self._width for letter, multiple in self._terms}


class Tensor:
    """What an operation reads or makes. size: a name of Sizes; width: bytes of an element; grad: wants a gradient.

    bytes: its own, of one sequence, which may be less than the storage's.
    """

    __slots__ = ("bytes", "grad", "size", "storage", "width")

    def __init__(self, storage: Storage, size: str, width: int, grad: bool, count: int) -> None:
        self.storage = storage
        self.bytes = count
        self.size = size
        self.width = width
        self.grad = grad


class Sizes:
    """How many elements a tensor has for each token: letters (h, f, a S) with numbers, and sums of them by name."""

    def __init__(self, length: int, letters: Mapping[str, int]) -> None:
        self.length = length
        self.letters = letters
        self._read: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = {}

    def per_token(self, name: str) -> int:
        """Elements for one token. name: as "h", "2 f", "q + 2 kv", "a S"."""
        return self.parsed(name)[0]

    def parsed(self, name: str) -> tuple[int, tuple[tuple[str, int], ...]]:
        """Elements for one token, and the multiple of each letter."""
        found = self._read.get(name)
        if found is None:
            terms = []
            for term in name.split(" + "):
                head, _, rest = term.partition(" ")
                terms.append((rest, int(head)) if head.isdigit() and rest else (term, 1))
            count = sum([multiple * self._one(letter) for letter, multiple in terms])
            found = self._read[name] = count, tuple(terms)
        return found

    def _one(self, letter: str) -> int:
        return int(letter) if letter.isdigit() else self.letters[letter]


class Operation:
    """One operation: what it reads, makes and keeps, and the bytes that its backward formula takes for itself."""

    __slots__ = (
        "back",
        "back_fixed",
        "forward",
        "forward_fixed",
        "inputs",
        "kind",
        "output",
        "saved",
        "through",
        "view",
    )

    def __init__(
        self,
        inputs: Sequence[Tensor],
        output: Tensor,
        saved: list[Storage],
        through: bool,
        back: int,
        back_fixed: int,
        forward_fixed: int,
    ) -> None:
        self.inputs = inputs
        self.output = output
        self.saved = saved
        self.through = through  # the gradient is handed on as it is: views, sums
        self.kind = ""  # mm or attention, for what selective checkpointing keeps
        self.view = False  # the result lies in the input's storage
        self.back = back
        self.back_fixed = back_fixed
        self.forward = 0
        self.forward_fixed = forward_fixed


class Tape:
    """Records operations. low: bytes of autocast's type, 0 where autocast is off; frozen: weights want no gradient."""

    def __init__(self, sizes: Sizes, low: int = 0) -> None:
        self.sizes = sizes
        self.low = low
        self.part = ""
        self.operations: list[Operation] = []

    def new(self, size: str, width: int, grad: bool = True, fixed: int = 0) -> Tensor:
        """A tensor in a storage of its own."""
        count, terms = self.sizes.parsed(size)
        bytes_ = count * width * self.sizes.length
        return Tensor(Storage(bytes_, fixed, self.part, terms, width), size, width, grad, bytes_)

    def run(
        self,
        inputs: Sequence[Tensor],
        size: str,
        width: int,
        *,
        saved: Sequence[Tensor] = (),
        keep: Sequence[Storage] = (),
        keeps_output: bool = False,
        through: bool = False,
        trained: bool = False,
        back: int = 0,
        back_fixed: int = 0,
        forward_fixed: int = 0,
    ) -> Tensor:
        """One operation that makes a new storage. trained: it reads a weight that wants a gradient."""
        grad = trained or any(each.grad for each in inputs)
        output = self.new(size, width, grad)
        kept: list[Storage] = []
        if grad:
            kept += [each.storage for each in saved]
            kept += keep
            if keeps_output:
                kept.append(output.storage)
        self.operations.append(Operation(inputs, output, kept, through, back, back_fixed, forward_fixed))
        return output

    def view(self, tensor: Tensor, size: str) -> Tensor:
        """The same storage, or a part of it, under another size."""
        count = self.sizes.per_token(size) * tensor.width * self.sizes.length
        output = Tensor(tensor.storage, size, tensor.width, tensor.grad, count)
        self.operations.append(Operation((tensor,), output, [], False, 0, 0, 0))
        self.operations[-1].view = True
        return output

    # Elementwise operations

    def cast(self, x: Tensor, width: int) -> Tensor:
        """`x.to(dtype)`; nothing is kept."""
        return x if x.width == width else self.run((x,), x.size, width)

    def lower(self, x: Tensor) -> Tensor:
        """What an operation of autocast's lower list reads."""
        return self.cast(x, self.low) if self.low and x.width == 4 else x

    def upper(self, x: Tensor) -> Tensor:
        """What an operation of autocast's fp32 list reads."""
        return self.cast(x, 4) if self.low else x

    def scale(self, x: Tensor) -> Tensor:
        """Times or plus a number; nothing is kept."""
        return self.run((x,), x.size, x.width)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y; nothing is kept, and both get the sum's gradient."""
        return self.run((x, y), x.size, max(x.width, y.width), through=True)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """x * y: each is kept for the other's gradient. The result has the size of x."""
        saved = [each for each, other in ((x, y), (y, x)) if other.grad]
        return self.run((x, y), x.size, max(x.width, y.width), saved=saved)

    def weighted(self, x: Tensor, width: int, trained: bool) -> Tensor:
        """x times a weight of `width` bytes. Where it is trained x is kept, and the product with it is summed up."""
        wide = max(x.width, width)
        saved, back = ([x], x.bytes // x.width * wide) if trained else ([], 0)
        return self.run((x,), x.size, wide, saved=saved, trained=trained, back=back)

    def power(self, x: Tensor) -> Tensor:
        """x ** n, in fp32 under autocast; x is kept."""
        x = self.upper(x)
        back = 2 * x.bytes  # n, x ** (n - 1) and their product
        return self.run((x,), x.size, x.width, saved=[x], back=back)

    def mean(self, x: Tensor, groups: str) -> Tensor:
        """The mean over features: nothing but the shape is kept."""
        return self.run((x,), groups, x.width)

    def by_input(self, x: Tensor) -> Tensor:
        """A function whose gradient needs its input: SiLU, GELU."""
        return self.run((x,), x.size, x.width, saved=[x])

    def by_output(self, x: Tensor) -> Tensor:
        """A function whose gradient needs its result: tanh, sigmoid, ReLU, rsqrt."""
        return self.run((x,), x.size, x.width, keeps_output=True)

    def dropout(self, x: Tensor, on: bool) -> Tensor:
        """A mask of one byte for each element is kept. With a probability of 0 nothing is done."""
        if not on:
            return x
        mask = self.new(x.size, 1, grad=False)
        return self.run((x,), x.size, x.width, saved=[mask])

    def join(self, parts: Sequence[Tensor], size: str) -> Tensor:
        """`torch.cat`, and copies that make a tensor contiguous: nothing is kept."""
        return self.run(parts, size, max(each.width for each in parts))

    def softmax(self, x: Tensor, width: int, fused: bool) -> Tensor:
        """A softmax in `width`; its result is kept. fused: fp16 in and fp32 out is one kernel.

        The backward kernel makes the product of gradient and result, as large as they are
        (aten/src/ATen/native/cuda/SoftMax.cu:host_softmax_backward).
        """
        x = x if fused else self.cast(x, width)
        back = x.bytes // x.width * width
        return self.run((x,), x.size, width, keeps_output=True, back=back)

    def matmul(self, x: Tensor, y: Tensor, size: str) -> Tensor:
        """A product of two activations, in autocast's lower type."""
        x, y = self.lower(x), self.lower(y)
        saved = [each for each, other in ((x, y), (y, x)) if other.grad]
        return self.run((x, y), size, x.width, saved=saved)

    # What follows from the record

    def kept(self) -> list[Storage]:
        """Every storage that autograd saves, once, in the order of the operations."""
        found: dict[int, Storage] = {}
        for operation in self.operations:
            for storage in operation.saved:
                found[id(storage)] = storage
        return list(found.values())
