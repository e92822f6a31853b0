"""The random numbers to come, of the host and of the device that a model is on."""

from __future__ import annotations

import torch


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of PyTorch's default generators."""
    found = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        found["device"] = torch.get_device_module(device).get_rng_state()
    return found


def set_random_state(device: torch.device, state: dict[str, torch.Tensor]) -> None:
    """As it was."""
    torch.set_rng_state(state["cpu"])
    if "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
