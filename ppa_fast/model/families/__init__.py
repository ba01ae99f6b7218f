"""Encoder families, one module each.

To add a family, add a module with a subclass of :class:`Family` and an entry in :data:`FAMILIES`.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from ppa_fast.model.families.bert import Bert
from ppa_fast.model.families.distilbert import DistilBert
from ppa_fast.model.families.eurobert import EuroBert
from ppa_fast.model.families.family import Family
from ppa_fast.model.families.gte import Gte
from ppa_fast.model.families.modernbert import ModernBert
from ppa_fast.model.families.padded import Padded
from ppa_fast.model.families.roberta import Roberta

FAMILIES: dict[str, Family] = {
    "bert": Bert(
        "BERT",
        "mBERT, LaBSE, multilingual-e5-small, all-MiniLM-L6-v2, paraphrase-multilingual-MiniLM-L12-v2",
        "the tokenizer can be that of another family; LaBSE needs `--pooling cls`, which omits its Dense module",
    ),
    "camembert": Roberta("CamemBERT", "camembert-base"),
    "distilbert": DistilBert("DistilBERT", "distilbert-base-multilingual-cased"),
    "eurobert": EuroBert("EuroBERT", "EuroBERT-210m, -610m, -2.1B", "bos and eos are used as `[CLS]` and `[SEP]`"),
    "gte": Gte("gte", "gte-multilingual-base in transformers' own layout", "needs transformers 5.23"),
    "modernbert": ModernBert(
        "ModernBERT",
        "mmBERT, ModernBERT",
        "bos and eos replace missing `[CLS]` and `[SEP]`; layers with local attention keep their window",
    ),
    "roberta": Roberta("RoBERTa", "roberta-base"),
    "xlm-roberta": Roberta(
        "XLM-R", "xlm-roberta-base, multilingual-e5-base, bge-m3, paraphrase-multilingual-mpnet-base-v2"
    ),
    "xlm-roberta-xl": Roberta("XLM-R XL", "xlm-roberta-xl, -xxl"),
}
"""Families by the ``model_type`` of the configuration."""

OTHER = Padded("any other", "DeBERTa-v3, RemBERT, MPNet, ALBERT, ELECTRA", "slower")
"""The family for all other model types of ``AutoModelForMaskedLM``."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of an encoder."""
    return FAMILIES.get(config.model_type, OTHER)
