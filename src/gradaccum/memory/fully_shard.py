"""What PyTorch's fully_shard (FSDP2, and HSDP) has on the way: gathered weights, and gradients to be scattered.

Each layer is a group, and embedding, last norm and head the root group, as torchtitan and Accelerate wrap them. G
elements are a layer's and R the root group's; w is the width of the type that is computed in, r of the one that
gradients are reduced in.

    start of forward   the root group and the first layer: weights, and the flat gather that they were copied from
    end of forward     the root's weights; the last layer's gather for its backward pass
    backward           a layer's weights, the next one's gather, its gradients: w G each, and r G: the layer behind it
                       in its reduce-scatter; the root's weights and the head's gradient beside them
    last reduction     the root's gradients and their reduce-scatter

_fsdp_param_group.py and _fsdp_collectives.py in torch/distributed/fsdp/_fully_shard say so, and each was measured on
PyTorch 2.13 (benchmarks/measure_sharding.py). Bytes of one rank.
"""

from __future__ import annotations

from gradaccum.catalog.models import params_by_part
from gradaccum.memory.ledger import Line
from gradaccum.memory.parallel import shared_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.memory.parallel import Stage
    from gradaccum.memory.widths import Widths

SOURCE = "torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, _fsdp_collectives.py; measured on PyTorch 2.13"


class FullyShard:
    """The groups of one rank.

    wide: bytes of a parameter that is trained; gathered: of any weight. trained: how many there are. deferred:
    gradients stay whole until the last micro-step.
    """

    def __init__(self, stage: Stage, wide: Widths, gathered: int, trained: int, deferred: bool) -> None:
        model = stage.setup.model
        self.stage = stage
        self.wide = wide
        self.deferred = deferred
        self.accumulates = stage.setup.accumulates
        self.reshards = stage.setup.reshard_after_forward
        self.layers = model.layers
        root = stage.embedding + stage.head + (params_by_part(model)["norm"] if stage.has_head else 0)
        layer = (model.params - root) // model.layers
        matrix = min(layer, model.hidden * max(model.ffn, model.heads * model.head_dim))
        head = stage.head or (stage.embedding if stage.has_head else 0)
        self.root = gathered * root
        self.layer = gathered * layer
        # Of frozen weights there is no gradient; adapters are of the layers.
        frozen = trained < model.params
        self.root_params = 0 if frozen else root
        self.layer_params = trained // model.layers if frozen else layer
        self.head = 0 if frozen else wide.computed * head
        self.layer_gradients = wide.computed * self.layer_params
        self.largest = 0 if frozen else wide.computed * matrix
        self.scattered = wide.reduced * self.layer_params

    def at_start(self) -> list[Line]:
        """Where the first layer's weights have come and the root's gather is still there."""
        return [
            Line("root group, gathered and copied", 2 * self.root, "2 w R", SOURCE),
            Line("first layer, gathered and copied", 2 * self.layer, "2 w G", SOURCE),
        ]

    def at_forward_end(self) -> list[Line]:
        """When the loss is calculated and its backward pass begins."""
        if self.reshards:
            return [self._root(), Line("last layer, gathered", self.layer, "w G", SOURCE)]
        return [self._root(), self._unsharded()]

    def in_backward(self) -> list[Line]:
        """In the backward pass of one of the last layers, the one before it being gathered."""
        if self.reshards:
            return [self._root(), *self._layer_in_backward()]
        behind = 0
        if self.layers > 1 and not self.deferred:  # the layer behind has given its weights back
            behind = max(0, self.scattered - self.layer + max(0, self._while_reduced() - self.layer_gradients))
        return [self._root(), self._unsharded(), *self._new_gradients(), *self._behind(behind)]

    def at_backward_end(self) -> list[Line]:
        """In the backward pass of the first layers, the very first being gathered."""
        return [self._root(), *self._layer_in_backward(), *self._all_reduced(self.layers - 2)]

    def at_reduction(self) -> list[Line]:
        """When the root group's gradients are reduced, the last to be; the layers' shards are there."""
        scattered = self.wide.reduced * self.root_params
        if self.deferred:
            left, formula = scattered, "r R, kept until now"
        else:
            own = 0 if self.accumulates else shared_by(self.stage, self.wide.gradient * self.root_params)
            whole = self.wide.computed * self.root_params
            left = max(whole - own, self.head + self._scattered_to(self.root_params))
            formula = "w R; or the head's, and what becomes of the others"
        return [
            Line("root group's reduce-scatter", scattered, "r R", SOURCE),
            Line("root group's gradients", left, formula, SOURCE),
            *self._all_reduced(self.layers),
        ]

    def _root(self) -> Line:
        return Line("unsharded root group", self.root, "w R: embedding, last norm and head", SOURCE)

    def _unsharded(self) -> Line:
        return Line("unsharded layers", self.layers * self.layer, "w L G: not resharded after forward", SOURCE)

    def _layer_in_backward(self) -> list[Line]:
        several = self.layers > 1
        layers = Line("layer, and the next one's gather", (1 + several) * self.layer, "2 w G", SOURCE)
        behind = 0
        if several and self.deferred:  # what the layer behind kept is freed as its shard comes
            behind = shared_by(self.stage, self.wide.gradient * self.layer_params)
            if self.stage.setup.strategy == "hsdp" and self.wide.reduced != self.wide.gradient:
                behind += shared_by(self.stage, self.scattered)
        elif several:
            behind = self.scattered + max(0, self._while_reduced() - self.layer - self.layer_gradients)
        return [layers, *self._new_gradients(), *self._behind(behind)]

    def _new_gradients(self) -> list[Line]:
        """What autograd has just made. A layer's stands until the layer is done, the head's until the root group is.

        Where whole gradients of the same type are kept, each is added as it comes; the head's comes when there is one
        layer less.
        """
        if self.deferred and self.wide.reduced == self.wide.computed:
            one = max(self.largest, self.head - (self.layer if self.reshards else 0))
            return [Line("one new gradient", one, "w x the largest matrix", SOURCE)]
        return [
            Line("gradient of the output head", self.head, "w V h, until the root group's turn", SOURCE),
            Line("gradients of one layer", self.layer_gradients, "w G", SOURCE),
        ]

    def _behind(self, count: int) -> list[Line]:
        if self.deferred:
            return [Line("gradient shards of a layer", count, "w G / N", SOURCE)]
        return [Line("a layer's reduce-scatter", count, "r G", SOURCE)]

    def _while_reduced(self) -> int:
        """A layer's gradients while they are reduced: all, or the last one and what becomes of the others."""
        return max(self.layer_gradients, self.largest + self._scattered_to(self.layer_params))

    def _scattered_to(self, params: int) -> int:
        """The output of a reduce-scatter and its copy in the gradients' type, unless it is the gradient itself."""
        output, copy = (shared_by(self.stage, each * params) for each in (self.wide.reduced, self.wide.gradient))
        if self.wide.reduced == self.wide.gradient:
            return output if self.accumulates else 0
        return output + copy

    def _all_reduced(self, layers: int) -> list[Line]:
        """Under HSDP each layer's all-reduced shard stays until the end (AllReduceState), where it is not the sum."""
        itself = self.wide.reduced == self.wide.gradient and not self.accumulates
        if self.stage.setup.strategy != "hsdp" or self.deferred or itself:
            return []
        count = shared_by(self.stage, self.scattered * max(0, layers))
        return [Line("all-reduced shards", count, "r L G / N, kept until the end of the backward pass", SOURCE)]
