"""Language codes: BCP-47 as users spell them, with ``_`` or ``-``."""

from __future__ import annotations

from collections.abc import Sequence
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


def best_match(code: str, found: Sequence[str]) -> int | None:
    """Which of the codes found in a file serves who asks for ``code``, as an index; None if none does.

    The same language, script and country first, else the first of the same language: ``en-US`` for ``en``. Where
    ``code`` names a script, a text in another one does not serve: ``zh-TW`` for ``zh_Hant``, but not ``zh-CN``.
    """
    exact = [is_code(other) and standard_code(other) == standard_code(code) for other in found]
    if any(exact):
        return exact.index(True)
    near = [is_code(other) and _serves(code, other) for other in found]
    return near.index(True) if any(near) else None


@lru_cache
def _serves(code: str, other: str) -> bool:
    script = langcodes.get(standard_code(code)).script
    return base_language(code) == base_language(other) and (
        script is None or langcodes.get(standard_code(other)).maximize().script == script
    )
