"""Whether matrix products are faster in bf16 than in fp32."""

from __future__ import annotations

import os

import torch

# Values of ONEDNN_MAX_CPU_ISA that allow oneDNN to use bf16 instructions.
_ALLOWING = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10")
_LEAST_HIDDEN = 256


def has_fast_bf16(hidden_size: int, lm_head: bool = False) -> bool:
    """Whether training on this CPU is faster with bf16 products: it has AMX or AVX512-BF16, and the products are large.

    A bf16 product takes a seventh (AMX) to a quarter (AVX512-BF16) of the time of an fp32 product, but its arguments
    are cast. A step without a language-model head was 0.9 times as fast at ``hidden_size`` 128, and 1.4 times at 256.
    oneDNN computes the products; ``ONEDNN_MAX_CPU_ISA`` can disable its use of these instructions.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    large = lm_head or hidden_size >= _LEAST_HIDDEN
    return large and supported and any(name in allowed for name in _ALLOWING)
