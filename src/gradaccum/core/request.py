"""All input of a calculation: `Request`, and how it is read from what a person wrote."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradaccum.core.fields import BY_NAME, CHOICE, COUNT, FIELDS, NAME_OF, RATIO, REAL, Field
from gradaccum.errors import InputError, Problem, lowered, nearest_words
from gradaccum.units import Ratio, quote, read_count, read_ratio, read_real, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypedDict

    class Inputs(TypedDict, total=False):
        """The keywords of `gradaccum.plan`: numbers, or text such as `4M`."""

        micro_batch: int | str | None
        num_gpus: int | str | None
        target_batch: int | str | None
        sequence_length: int | str | None
        rounding: str
        target_tokens: int | str | None
        accum_steps: int | str | None
        max_micro_batch: int | str | None
        vary: str | None
        tensor_parallel: int | str
        pipeline_parallel: int | str
        context_parallel: int | str
        virtual_pipeline: int | str
        dataset_size: int | str | None
        epochs: float | str | None
        token_budget: int | str | None
        updates: int | str | None
        last_group: str
        warmup_updates: int | str | None
        warmup_tokens: int | str | None
        warmup_fraction: float | str | None
        supervised_fraction: float | str | None
        params: int | str | None
        gradient_dtype: str | None
        learning_rate: float | str | None
        base_batch: int | str | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks. None is "not given"; FIELDS says what each name means, and its unit.

    Raises InputError, with one Problem for each fault, where the values are nonsense or contradict each other.
    """

    micro_batch: int | None = None
    num_gpus: int | None = None
    target_batch: int | None = None
    sequence_length: int | None = None
    rounding: str = "round"
    target_tokens: int | None = None
    accum_steps: int | None = None
    max_micro_batch: int | None = None
    vary: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    virtual_pipeline: int = 1
    dataset_size: int | None = None
    epochs: Ratio | None = None
    token_budget: int | None = None
    updates: int | None = None
    last_group: str = "step"
    warmup_updates: int | None = None
    warmup_tokens: int | None = None
    warmup_fraction: Ratio | None = None
    supervised_fraction: Ratio | None = None
    params: int | None = None
    gradient_dtype: str | None = None
    learning_rate: float | None = None
    base_batch: int | None = None
    written: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(name, text) of each value that was not written as plain digits, so that a face can echo how it was read."""

    def __post_init__(self) -> None:
        values = [(spec, getattr(self, spec.name)) for spec in FIELDS]
        found = [_invalid(spec, value) for spec, value in values if value is not None or spec.default is not None]
        problems = [problem for problem in found if problem] or list(_contradictions(self))
        if problems:
            raise InputError(*problems)

    @property
    def model_parallel(self) -> int:
        """GPUs that hold one replica of the model."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def target(self) -> int | None:
        """The target in the unit that it was given in: sequences or tokens."""
        return self.target_batch if self.target_tokens is None else self.target_tokens

    def given(self) -> dict[str, object]:
        """The inputs that differ from their defaults, by name."""
        values = {each.name: getattr(self, each.name) for each in FIELDS}
        return {name: value for name, value in values.items() if value != BY_NAME[name].default}


def read_inputs(inputs: Mapping[str, object]) -> Request:
    """The Request that names and values stand for. Values are numbers, or text such as `4M`; names may be aliases.

    An empty text and None mean "not given". Raises InputError with every wrong field, not only the first.
    """
    values: dict[str, object] = {}
    written: list[tuple[str, str]] = []
    problems: list[Problem] = []
    spelled: dict[str, str] = {}
    for spelling, raw in inputs.items():
        name = NAME_OF.get(spelling) or NAME_OF.get(spelling.replace("-", "_"))
        if name is None:
            problems.append(unknown_name(spelling, NAME_OF, "is not an input"))
            continue
        if raw is None or raw == "" or (isinstance(raw, str) and not raw.strip()):
            continue
        if name in spelled:
            problems.append(Problem(name, f"was given twice, as {spelled[name]} and as {spelling}; leave one out"))
            continue
        spelled[name] = spelling
        name, raw = unit_named(name, raw)
        try:
            values[name] = read_value(name, raw)
        except InputError as error:
            problems.extend(error.problems)
            continue
        if isinstance(raw, str) and BY_NAME[name].kind == COUNT and not raw.strip().isdigit():
            written.append((name, raw.strip()))
    if problems:
        raise InputError(*problems)
    return Request(written=tuple(written), **values)  # type: ignore[arg-type]


def unknown_name(name: str, known: Mapping[str, object] | tuple[str, ...], what: str) -> Problem:
    """A Problem for a word that nobody knows, with the nearest known ones."""
    nearest = nearest_words(name.replace("-", "_")[:80], known)
    return Problem(name if len(name) <= 40 else name[:37] + "...", what, nearest)


def unit_named(name: str, raw: object) -> tuple[str, object]:
    """A target batch written as `4M tokens` is a target in tokens; everything else stays as it is."""
    if name == "target_batch" and isinstance(raw, str):
        text = raw.strip()
        for ending in ("tokens", "tok"):
            if lowered(text).endswith(ending):
                return "target_tokens", text[: -len(ending)]
    return name, raw


def read_value(name: str, raw: object) -> object:
    """`raw` as the kind of value that the input holds. Raises InputError where it is none."""
    spec, value = BY_NAME[name], raw
    if isinstance(raw, str):
        if spec.kind == COUNT and ".." in raw:
            raise InputError(Problem(spec.name, f"is a range: {quote(raw)}; a table takes ranges, a plan one value"))
        if spec.kind == COUNT and "," in raw and any(len(part.strip()) < 3 for part in raw.split(",")[1:]):
            raise InputError(Problem(spec.name, f"is a list: {quote(raw)}; a table takes lists, a plan one value"))
        if spec.kind == COUNT:
            value = read_count(raw, spec.name, spec.minimum)
        elif spec.kind == RATIO:
            value = read_ratio(raw, spec.name)
        else:
            value = lowered(raw.strip()) if spec.kind == CHOICE else read_real(raw, spec.name)
    elif spec.kind == RATIO and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        value = read_ratio(repr(float(raw) if isinstance(raw, float) else raw), spec.name)
    elif spec.kind == COUNT and hasattr(raw, "__index__") and not isinstance(raw, bool):
        value = raw.__index__()  # int, and the whole numbers of other libraries
    problem = _invalid(spec, value)
    if problem:
        raise InputError(problem)
    return float(value) if spec.kind == REAL else value  # type: ignore[arg-type]


# What is wrong with values that were read


def _invalid(spec: Field, value: object) -> Problem | None:
    """What is wrong with one value on its own: its type or its range."""
    if spec.kind == COUNT:
        if not isinstance(value, int) or isinstance(value, bool):
            return Problem(spec.name, f"must be a whole number, not {quote(repr(value))}")
        if value < spec.minimum:
            return Problem(spec.name, f"must be at least {spec.minimum}, not {show_count(value)}", [str(spec.minimum)])
    elif spec.kind == CHOICE:
        if value not in spec.choices:
            words = ", ".join(spec.choices)
            nearest = nearest_words(str(value), spec.choices)
            return Problem(spec.name, f"is one of {words}, not {quote(str(value))}", nearest)
    elif spec.kind == RATIO:
        if not isinstance(value, Ratio):
            return Problem(spec.name, f"must be a number, not {quote(repr(value))}")
        if value.numerator < 0 or (spec.minimum == 1 and value.numerator == 0):
            return Problem(spec.name, f"must be above 0, not {value}")
        if spec.minimum == 0 and value.numerator > value.denominator:
            percent = value.numerator <= 100 * value.denominator
            return Problem(spec.name, f"is a share from 0 to 1, not {value}", [f"{value}%" if percent else "1"])
    elif not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
        return Problem(spec.name, f"must be a number above 0, not {quote(repr(value))}")
    return None


_EXCLUSIVE = (
    ("target_batch", "target_tokens"),
    ("token_budget", "epochs"),
    ("token_budget", "updates"),
    ("updates", "epochs"),
    ("warmup_updates", "warmup_tokens"),
    ("warmup_updates", "warmup_fraction"),
    ("warmup_tokens", "warmup_fraction"),
)
"""Two ways to say one thing: both together would be one too many."""

_NEEDS = (
    ("target_tokens", "sequence_length", "tokens are counted with it"),
    ("token_budget", "sequence_length", "tokens are counted with it"),
    ("warmup_tokens", "sequence_length", "tokens are counted with it"),
    ("supervised_fraction", "sequence_length", "it is a share of the tokens"),
    ("epochs", "dataset_size", "an epoch is one pass over it"),
    ("learning_rate", "base_batch", "a learning rate is scaled from the batch at which it worked"),
    ("base_batch", "learning_rate", "it is the batch at which a learning rate worked"),
)


def _contradictions(request: Request) -> Iterator[Problem]:
    """The values together."""
    for one, other in _EXCLUSIVE:
        if getattr(request, one) is not None and getattr(request, other) is not None:
            yield Problem(other, f"says the same as {one}; give one of the two")
    for name, needed, why in _NEEDS:
        if getattr(request, name) is not None and getattr(request, needed) is None:
            yield Problem(needed, f"is needed beside {name}: {why}")
    if request.virtual_pipeline > 1 and request.pipeline_parallel == 1:
        yield Problem(
            "virtual_pipeline", "interleaves pipeline stages, but pipeline_parallel is 1; set that first", ["1"]
        )
    if request.micro_batch and request.max_micro_batch and request.micro_batch > request.max_micro_batch:
        limit = show_count(request.max_micro_batch)
        yield Problem("micro_batch", f"is {show_count(request.micro_batch)}, above max_micro_batch {limit}", [limit])
    if request.num_gpus is not None and request.num_gpus % request.model_parallel:
        yield _broken_world(request, request.num_gpus)


def _broken_world(request: Request, num_gpus: int) -> Problem:
    """The degrees do not divide the world."""
    replica = request.model_parallel
    degrees = " x ".join(
        f"{name.replace('_parallel', '')} {show_count(getattr(request, name))}"
        for name in ("tensor_parallel", "pipeline_parallel", "context_parallel")
        if getattr(request, name) > 1
    )
    below = num_gpus // replica * replica
    return Problem(
        "num_gpus",
        f"is {show_count(num_gpus)}, but one replica of the model takes {show_count(replica)} GPUs ({degrees}), "
        f"and {show_count(num_gpus)} is no multiple of that",
        [str(count) for count in (below, below + replica) if count],
    )


_TARGETS = ("target_batch", "target_tokens")
_LENGTHS_OF_RUN = ("token_budget", "updates", "epochs")


def over_preset(preset: Mapping[str, object], inputs: Mapping[str, object]) -> dict[str, object]:
    """The inputs of a published run, overridden by a person's own.

    What says the same as an own input gives way to it: a target in sequences to one in tokens, a token budget to
    epochs, and the target to own accumulation steps where micro-batch and GPUs are there.
    """
    own = {NAME_OF.get(name.replace("-", "_"), name) for name, value in inputs.items() if value not in (None, "")}
    kept = dict(preset)
    for group in (_TARGETS, _LENGTHS_OF_RUN):
        if own.intersection(group):
            kept = {name: value for name, value in kept.items() if name not in group}
    if "accum_steps" in own and not own.intersection(_TARGETS):
        kept = {name: value for name, value in kept.items() if name not in _TARGETS}
    kept = {name: value for name, value in kept.items() if name not in own}
    return {**kept, **{name: value for name, value in inputs.items() if value not in (None, "")}}
