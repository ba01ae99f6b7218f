"""How much of a device the steps use: floating-point operations against its peak, and memory."""

from __future__ import annotations

import resource
from typing import Any

import torch

PEAKS = {"H100": 989e12, "H200": 989e12}
"""Floating-point operations/s of dense bf16 products as the vendor states them, by a word of the device's name."""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak(name: str, dtype: torch.dtype) -> float | None:
    """The peak of a device in operations/s; None where it is not known: most devices, and all in fp32."""
    if dtype == torch.float32:
        return None
    return next((flop for word, flop in PEAKS.items() if word in name), None)


def peak_memory(device: torch.device) -> float:
    """The most memory in GiB that this process has held so far: on the device, or, on a CPU, resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_flop(config: Any, tlm_tokens: int, moco_tokens: int, masked: int, frozen_layers: int) -> float:
    """The operations that a global step cannot do without: forward, and backward of what is trained, which is twice it.

    Counted are the products with the layers' weights and, of ``masked`` rows, the LM head's. Attention's own products,
    the projection and the contrast are not: a share of a few percent, so what is made of this is rather too low.
    ``config``: the encoder's. ``tlm_tokens``, ``moco_tokens``: tokens that each objective encodes, specials included;
    of the latter a half, on average, goes to the momentum encoder, which has no backward.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer = 2 * (4 * hidden**2 + 2 * hidden * config.intermediate_size)  # forward, of a token
    trained = tlm_tokens + moco_tokens / 2
    forward = layers * layer * (tlm_tokens + moco_tokens)
    backward = 2 * (layers - frozen_layers) * layer * trained
    return forward + backward + 3 * 2 * masked * hidden * (hidden + config.vocab_size)
