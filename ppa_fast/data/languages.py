"""Language codes: BCP-47 as users spell them, with ``_`` or ``-``."""

from __future__ import annotations

from functools import lru_cache

import langcodes


@lru_cache
def is_code(code: str) -> bool:
    """Whether a text is a language code of BCP-47, such as ``en`` or ``zh_Hant``; ``_`` is as good as ``-``."""
    return langcodes.tag_is_valid(code.replace("_", "-"))


@lru_cache
def standard_code(code: str) -> str:
    """A valid language code in BCP-47's letter case and shortest form (``eng`` is ``en``), ``_`` for ``-``."""
    return langcodes.standardize_tag(code.replace("_", "-")).replace("-", "_")


def base_language(code: str) -> str:
    """The language of a valid code without script and country: ``zh`` of ``zh_Hant``, ``en`` of ``eng``."""
    return standard_code(code).split("_")[0]


def is_english(code: str) -> bool:
    """Whether a valid code stands for English: ``en``, ``eng``, ``en_GB``."""
    return base_language(code) == "en"
