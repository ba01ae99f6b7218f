"""Device utilization: floating-point operations relative to the device's peak, and memory."""

from __future__ import annotations

import resource
from typing import Any

import torch

from ppa_fast.model.families import family_of
from ppa_fast.settings import Settings

PEAKS = {"H100": 989e12, "H200": 989e12}
"""The vendor's peak for dense bf16 matrix products in floating-point operations/s, by a part of the device's name."""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak(name: str, dtype: torch.dtype) -> float | None:
    """The peak of a device in operations/s; None if unknown (most devices, and every device in fp32)."""
    if dtype == torch.float32:
        return None
    return next((flop for word, flop in PEAKS.items() if word in name), None)


def peak_memory(device: torch.device) -> float:
    """The peak memory of this process in GiB: allocated on the device, or resident for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_flop(config: Any, settings: Settings, tlm_tokens: int, contrast_tokens: int, masked: int) -> float:
    """The floating-point operations of a global step. The backward pass of a trained layer counts twice the forward,
    that of a frozen layer above trained parts once.

    Counts the matrix products with the layers' weights, and those of the LM head for ``masked`` positions. Does not
    count attention's own products, the projection and the contrast (a few percent), so the result is slightly too low.

    Args:
        config: the encoder's configuration. settings: the run's settings.
        tlm_tokens, contrast_tokens: tokens that each objective encodes, specials included. With MoCo, on average half
            of ``contrast_tokens`` go to the momentum encoder, which has no backward.
        masked: masked positions of the step.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    frozen, reached = settings.frozen(layers), settings.contrast_layer or layers
    trained = set(range(layers + 1)) - frozen

    def backward(top: int) -> int:
        """The cost of the backward pass from layer ``top`` down, in units of one layer's forward pass."""
        return sum((number in trained) + (min(trained) <= number) for number in range(1, top + 1)) if trained else 0

    share = 0.5 if settings.contrast == "moco" else 1
    passes = tlm_tokens * (layers + backward(layers)) + contrast_tokens * (reached + share * backward(reached))
    head = 3 * 2 * masked * hidden * (hidden + config.vocab_size)
    return passes * 2 * family_of(config).layer_weights(config) + head
