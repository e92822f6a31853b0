"""Queries to ask the page in every Python: plain, random and hostile ones, the same on every run; and their answers."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

from gradaccum.catalog.gpus import gpus
from gradaccum.catalog.models import models
from gradaccum.catalog.runs import published_runs
from gradaccum.core.fields import CHOICE, COUNT, FIELDS, NAME_OF, RATIO, REAL
from gradaccum.memory.setup import CHOICES
from gradaccum.web.fit import fit_or_errors
from gradaccum.web.page import asks_what_fits, plan_or_errors, render_page

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = (
    "",
    "target_batch=512",
    "micro_batch=0&num_gpus=x",
    "target_batch=4M+tokens&sequence_length=2k",
    "rounding=exact&target_batch=515",
    "preset=bloom-176b",
    "preset=bloom-17",
    "num_gpus=64&pipeline_parallel=8&virtual_pipeline=2&gradient_dtype=bf16&params=7B",
    "dataset_size=10k&epochs=1.5&warmup_fraction=3%25&learning_rate=3e-4&base_batch=64",
    "micro_batch=<script>&target_batch=%ff",
    "max_micro_batch=24&vary=num_gpus",
    "accum_steps=3&target_batch=",
    "loop=fsdp2-deferred&weighting=mean&supervised_fraction=0.3",
    "micro_batch=1" + "0" * 98,
)

COUNTS = "1 2 3 4 7 8 12 16 24 31 64 100 500 512 513 1000 1023 2048 4096 65536 1M 4M 2Ki 16x8 1,024 1_024 2^19".split()
RATIOS = "0 1 0.5 1.5 2.25 3 30% 3% 0.001 1e-3 99.9% 12.125 1/3".split()
REALS = "3e-4 0.1 1 6.654e-5 0.0001234567890123456789 1e-9 2.5e2 66.54 0.684".split()
HOSTILE = (
    "", " ", "0", "-1", "-0", "+5", "1.5", "1.024", "x", "nan", "inf", "-inf", "1e6", "1e-400", "1e99999", "9" * 40,
    "9" * 100, "9" * 101, "9" * 250, "1" + "0" * 99, "0x10", "0b1", "1e", "e1", ".", "1..2", "1__0", "1,2,3", "12,34",
    "1 000", "\u0661\u0662", "\uff14", "\u00b2", "\u2167", "4\u00a0", "\u2003 8", "\x1c8\x1f", "8\t\n", "\x008", "\x7f",
    "\ufeff4", "\u2028", "\U0001f680", "e\u0301", "<script>alert(1)</script>", "\"'><b>", "&amp;", "%", "%%", "{0}",
    "%s%d", "{}", "\\", "'; --", "4;5", "4M tokens", "1.5M tokens", "tokens", "4 k", "4kk", "4Zi", "2**3**2", "16x",
    "x8", "2^1000", "2^-1", "10^99", "None", "true", "[]", "../../x", "\U00010000", "\u0130", "\u00df", "\u1e9e", "ﬁ",
)  # fmt: skip
RAW = ("%", "%f", "%ff", "%c3%28", "%ed%a0%80", "%00", "+", "%2B", "=", "==", "&&", ";", "%F0%9F%9A%80", "%u0041", "?")
"""Texts that are put into the query as they are."""
WORDS = ("auto", "ddp", "fsdp2", "fsdp2-deferred", "single", "tokens", "mean", "1", "0", "yes", "", "<b>")


def queries(count: int, seed: int = 0) -> list[str]:
    """PLAIN and random ones, `count` in all, no two the same: about half of them give a plan."""
    chance = random.Random(seed)
    found = dict.fromkeys(PLAIN)
    makers = (_sensible, _sensible, _sensible, _wild, _preset, _broken)
    while len(found) < count:
        found[chance.choice(makers)(chance)[:2100]] = None
    return list(found)[:count]


def _sensible(chance: random.Random) -> str:
    """A few inputs with values that fit them; most of these give a plan."""
    names = chance.sample([field.name for field in FIELDS[:5]], chance.randint(0, 4))
    names += chance.sample([field.name for field in FIELDS[5:]], chance.choice((0, 0, 1, 1, 2, 4)))
    pairs = [f"{name}={quote(_value(name, chance))}" for name in names]
    if not chance.randrange(6):
        pairs.append(f"loop={chance.choice(WORDS)}&weighting={chance.choice(WORDS)}")
    if not chance.randrange(12):
        pairs.append("embed=1")
    return "&".join(pairs)


def _value(name: str, chance: random.Random) -> str:
    (field,) = (each for each in FIELDS if each.name == name)
    if field.kind == CHOICE:
        return chance.choice(field.choices)
    if field.kind == COUNT and chance.randrange(2):
        return str(chance.randint(1, 10 ** chance.choice((1, 1, 2, 3, 4, 6, 9, 18))))
    return chance.choice({COUNT: COUNTS, RATIO: RATIOS, REAL: REALS}[field.kind])


def _wild(chance: random.Random) -> str:
    """Any name or alias with any text."""
    names = [*NAME_OF, "preset", "loop", "weighting", "embed"]
    pairs = []
    for name in chance.sample(names, chance.randint(1, 5)):
        text = chance.choice(HOSTILE) if chance.randrange(4) else chance.choice(COUNTS)
        pairs.append(f"{name}={quote(text)}")
    return "&".join(pairs)


def _preset(chance: random.Random) -> str:
    name = chance.choice(published_runs()).id
    if not chance.randrange(4):
        place = chance.randrange(len(name))
        name = name[:place] + chance.choice("abcz-07 ") + name[place + 1 :]
    other = _sensible(chance) if chance.randrange(2) else ""
    return f"preset={quote(name)}" + (f"&{other}" if other else "")


def _broken(chance: random.Random) -> str:
    """What no form sends: bad escapes, repeated and unknown names, far too much of it."""
    pairs = []
    for _ in range(chance.randint(1, 4)):
        name = chance.choice([*NAME_OF, "micro_batchs", "", "x", "target", "<b>", "MICRO_BATCH", "micro-batch", "%6d"])
        pairs.append(name + chance.choice(("=", "", "==")) + chance.choice(RAW + HOSTILE[:20]))
    query = "&".join(pairs)
    return query * chance.choice((1, 1, 1, 2, 60))


FITS = (
    "model=llama-3.2-1b&gpu=rtx-4090",
    "gpu=t4",
    "model=&gpu=",
    "model=gpt2&gpu=24GiB&num_gpus=1&target_batch=",
    "model=llama-9b&gpu=rtx-5&attention=magic",
    "model=llama-3.1-8b&gpu=h100&strategy=single",
    "model=gpt2&gpu=t4&sequence_length=1" + "0" * 90 + "&num_gpus=1" + "0" * 60,
    "model=bert-base&gpu=mi300x&micro_batch=x",
    "preset=bloom-176b&model=bloom-176b&gpu=a100-sxm-80gb&strategy=fsdp2",
    "model=gpt2&gpu=t4&target_tokens=4M&sequence_length=1k&dtype=fp32&gradient_dtype=bf16&embed=1",
    "model=<script>&gpu=%ff&model=gpt2",
)


def fit_queries(count: int, seed: int = 0) -> list[str]:
    """FITS and random ones that ask what fits, `count` in all: most of these are answered."""
    chance = random.Random(seed)
    found = dict.fromkeys(FITS)
    names = [each.id for each in models()], [each.id for each in gpus()] + ["24GiB", "80GB", "1TiB"]
    while len(found) < count:
        pairs = [f"{name}={chance.choice(known)}" for name, known in zip(("model", "gpu"), names)]
        for name in chance.sample(sorted(CHOICES), chance.randint(0, 3)):
            pairs.append(f"{name}={chance.choice(CHOICES[name])}")
        if not chance.randrange(6):
            pairs[chance.randrange(len(pairs))] += quote(chance.choice(HOSTILE))
        if chance.randrange(2):
            pairs += [f"num_gpus={chance.choice('1 2 8 64 1000'.split())}", f"sequence_length={chance.choice(COUNTS)}"]
        else:
            pairs.append(_sensible(chance))
        found["&".join(pairs)] = None
    return list(found)[:count]


def answers(query: str) -> tuple[str, str]:
    """The plan as JSON, or what fits where that is asked, and the whole page as HTML."""
    found = fit_or_errors(query) if asks_what_fits(query) else plan_or_errors(query)
    # As the server's JSONResponse writes it.
    return json.dumps(found[1], ensure_ascii=False, allow_nan=False, separators=(",", ":")), render_page(query)


def digests(asked: list[str]) -> Iterator[str]:
    """One line for each query: the digests of both answers."""
    for query in asked:
        yield " ".join(hashlib.sha256(text.encode()).hexdigest()[:16] for text in answers(query))
