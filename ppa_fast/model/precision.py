"""Whether matrix products are faster in bf16 than in fp32."""

from __future__ import annotations

import os

import torch

# Values of ONEDNN_MAX_CPU_ISA that allow oneDNN to use bf16 instructions.
_ALLOWING = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10")
_LEAST_HIDDEN = 256


def has_bf16_instructions() -> bool:
    """Whether this CPU has instructions for bf16 products, AMX or AVX512-BF16, and oneDNN may use them.

    oneDNN computes the products; ``ONEDNN_MAX_CPU_ISA`` can disable its use of these instructions.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return supported and any(name in allowed for name in _ALLOWING)


def has_fast_bf16(hidden_size: int, lm_head: bool = False) -> bool:
    """Whether training on this CPU is faster with bf16 products: it has the instructions, and the products are large.

    The arguments of a bf16 product are cast from fp32, which costs more than it saves in a small encoder without a
    language-model head. benchmarks/README.md, bf16_products.py, has the measurement.
    """
    return (lm_head or hidden_size >= _LEAST_HIDDEN) and has_bf16_instructions()
