"""Which linear layers have a LoRA adapter. All else about adapters follows from the tape (modules.py)."""

from __future__ import annotations

from gradaccum.errors import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = ("default", "attention", "all-linear")

_QUERIES_AND_VALUES = ("q_proj", "v_proj")

DEFAULTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "opt"), _QUERIES_AND_VALUES
    ),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "bloom": ("query_key_value",),
    "gpt_neox": ("query_key_value",),
    "gpt2": ("c_attn",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}
"""What PEFT 0.21 takes where nothing is said (peft/utils/constants.py); the other families have no default there."""


def check_targets(family: str, word: str) -> Iterator[Problem]:
    """What is wrong with the word for this family."""
    if word == "default" and family not in DEFAULTS:
        yield Problem("lora_targets", f"must be said: PEFT has no default for {family}", ["attention", "all-linear"])


def is_target(family: str, word: str, name: str, part: str) -> bool:
    """Whether the linear layer `name`, in this part of its layer, has an adapter."""
    if word == "default":
        return name in DEFAULTS[family]
    return word == "all-linear" or part == "attention"
