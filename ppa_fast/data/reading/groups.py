"""Defines when two texts are the same sentence, for groups and duplicates."""

from __future__ import annotations

import re
import unicodedata

import xxhash

GROUP_RULE = "nfc-visible-1"
"""Name of the rule in :func:`comparison_form` and of the pivot choice; stored in a store's manifest."""

# Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt): zero-width spaces and joiners, soft
# hyphens, byte order marks, variation selectors, fillers.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def comparison_form(text: str) -> str:
    """Converts a text to NFC and strips white space and code points that Unicode ignores by default.

    Texts of the same form look the same, and most tokenizers give them the same tokens.
    """
    return _IGNORABLE.sub("", unicodedata.normalize("NFC", text)).strip()


def sentence_group(text: str) -> int:
    """The group of a pivot text: XXH3-64 of its comparison form in UTF-8, as a signed 64-bit integer.

    Pairs of the same group are translations of the same sentence, in any languages.
    """
    digest = xxhash.xxh3_64_intdigest(comparison_form(text).encode("utf-8"))
    return digest - (1 << 64) if digest >> 63 else digest
