"""`gradaccum fit`: the largest micro-batch that a GPU holds, known before the run."""

from __future__ import annotations

from gradaccum.cli.fit_probe import add_options, refuse_without_probe, run_probe
from gradaccum.cli.options import Once, Parser, new_parser, parse
from gradaccum.memory import layout
from gradaccum.memory.answer import Step
from gradaccum.memory.engines import ENGINES
from gradaccum.memory.ranks import layout_words
from gradaccum.memory.setup import CHOICES, MEANINGS, Setup

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from gradaccum.memory.answer import Fit

EXAMPLES = """\
  gradaccum fit --model llama-3.2-1b --gpu rtx-4090 -s 2048 -t 64
  gradaccum fit --model qwen2.5-7b --gpu a100-sxm-80gb -g 8 --strategy fsdp2 -s 4096 -t 512
  gradaccum fit --model llama-3.1-70b --gpu h200 -g 64 --tensor-parallel 8 --strategy fsdp2 --checkpointing full
  gradaccum fit --model config.json --gpu 24GiB -s 1024 --checkpointing full
  gradaccum fit --model qwen2.5-7b --gpu rtx-4090 --quantization nf4 --lora-rank 16 --checkpointing full
  gradaccum fit --model train:build --gpu rtx-3060-12gb -t 64
  gradaccum fit --model train:build --probe -t 64"""

MODEL = "a name such as llama-3.1-8b, a config.json, or module:function of your own, which returns (model, batch, loss)"

TRACED = {
    "engine": f"{', '.join(ENGINES)}: who answers; a module:function is followed by a trace (default: closed-form)",
    "allocator": "words of PYTORCH_ALLOC_CONF for a trace, such as expandable_segments:True (default: that variable)",
    "time_limit": "seconds that a trace may take",
}

COUNTS = {
    "sequence_length": (
        "-s",
        "tokens of one sequence (default: 2048, fewer where the model allows no more, or an image's)",
    ),
    "num_gpus": ("-g", "all GPUs of the run (default: 1)"),
    "target_batch": ("-t", "sequences that you want per update, for the plan; '1M tokens' by their length"),
    "accum_steps": ("-a", "micro-steps per update; two or more are the same (default: as many as the plan needs)"),
}

LAYOUT = {
    "shard_size": "ranks of one group that shards, for hsdp",
    "tensor_parallel": "GPUs that share each layer (default: 1)",
    "pipeline_parallel": "pipeline stages, one forward one backward; the heaviest is shown (default: 1)",
    "virtual_pipeline": "stages per rank under interleaving (default: 1)",
    "context_parallel": "GPUs that share each sequence (default: 1)",
    "expert_parallel": "data-parallel ranks that share the experts (default: 1)",
}
FLAGS = {
    "sequence_parallel": "tensor-parallel ranks share the residual stream too, as in Megatron",
    "distributed_optimizer": "Megatron's: ddp, with fp32 gradients, and fp32 weights and states shared",
    "gradient_as_bucket_view": "ddp: gradients are views of the buckets",
    "reshard_after_forward": "fsdp2, hsdp: keep weights gathered from forward to backward",
}


def parser() -> Parser:
    """All options of the command."""
    found = new_parser("fit", "The largest micro-batch that your GPU holds, without a GPU.", EXAMPLES)
    found.add_argument("--model", metavar="M", action=Once, help=MODEL)
    found.add_argument("--gpu", metavar="G", action=Once, help="a name such as rtx-3060-12gb, or bytes such as 24GiB")
    for name, (short, words) in COUNTS.items():
        flags = [short, "--" + name.replace("_", "-"), *(["--accum"] if name == "accum_steps" else [])]
        found.add_argument(*flags, dest=name, action=Once, metavar="N", help=words)
    how = found.add_argument_group("how it is trained")
    where = found.add_argument_group("how it lies over several GPUs")
    for name, choices in CHOICES.items():
        default = "" if name == "strategy" else f" (default: {choices[0]})"
        text = f"{', '.join(choices)}: {MEANINGS[name]}{default}"
        group = where if name in layout.CHOICES else how
        group.add_argument("--" + name.replace("_", "-"), dest=name, action=Once, metavar="WORD", help=text)
    for name, words in LAYOUT.items():
        where.add_argument("--" + name.replace("_", "-"), dest=name, action=Once, metavar="N", help=words)
    for name, words in FLAGS.items():
        negated = name == "reshard_after_forward"  # the one that is on unless it is said
        flag = ("--no-" if negated else "--") + name.replace("_", "-")
        where.add_argument(flag, dest=name, action="store_const", const=not negated, help=words)
    text = "train adapters of this rank, and freeze the model (default: 0, all is trained)"
    how.add_argument("--lora-rank", dest="lora_rank", action=Once, metavar="N", help=text)
    traced = found.add_argument_group("who answers")
    for name, words in TRACED.items():
        traced.add_argument("--" + name.replace("_", "-"), dest=name, action=Once, metavar="WORD", help=words)
    add_options(found)
    form = found.add_argument_group("output, one of").add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all of it as JSON")
    form.add_argument("-q", "--quiet", action="store_true", help="the plan's micro-batch alone: the largest without -t")
    return found


def run(arguments: Sequence[str]) -> int:
    """Print what fits. Raises InputError for what cannot be read or is not known."""
    options = parse(parser(), arguments)
    if options.probe:
        return run_probe(options)
    refuse_without_probe(options)
    found = _found(options)
    if options.quiet:
        print(found.setup.micro_batch if found.max_micro_batch else 0)
        return 0
    if options.json:
        import json

        print(json.dumps(found.to_dict(), indent=2))
        return 0
    from gradaccum.cli.terminal import columns
    from gradaccum.show.fit import fit_text

    words = _in_words(found.setup, options.sequence_length is None)
    print(fit_text(found.to_dict(), found.gpu.name, words, columns()))
    return 0


def _in_words(setup: Setup | Step, usual_length: bool) -> str:
    """How it is trained. usual_length: nothing was said of the sequence's."""
    if isinstance(setup, Step):
        return setup.words
    words = [setup.words, *layout_words(setup)]
    if usual_length and setup.sequence_length == setup.model.positions:
        words.append("sequences as long as the model's config allows")
    return ", ".join(words)


def _found(options: argparse.Namespace) -> Fit:
    """The same question as in Python, with the values as text."""
    from gradaccum import fit

    names = (*COUNTS, *CHOICES, *LAYOUT, *FLAGS, "lora_rank", "engine", "allocator", "time_limit")
    said: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return fit(model=options.model, gpu=options.gpu, **said)
