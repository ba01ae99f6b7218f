import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast, ByT5Tokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ppa_fast.data.store.tokenize import SpecialIds, TextTokenizer, load_tokenizer, special_ids, tokenizer_fingerprint
from ppa_fast.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüéÄÖÜÉ<>/[]"
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLMR_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LITERALS = [*BERT_SPECIALS, *XLMR_SPECIALS]


def wordpiece(lowercase: bool = False) -> PreTrainedTokenizerBase:
    pieces = [*BERT_SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "##ing"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return BertTokenizerFast(tokenizer_object=backend, do_lower_case=lowercase)


def unigram() -> PreTrainedTokenizerBase:
    pieces = [(piece, 0.0) for piece in XLMR_SPECIALS]
    pieces += [("▁", -2.0), ("▁the", -3.0), ("ing", -3.0), *((letter, -6.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return XLMRobertaTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module", params=[wordpiece, unigram], ids=["wordpiece", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param().save_pretrained(folder)
    return load_tokenizer(str(folder))


def test_special_ids_are_found(tmp_path: Path) -> None:
    assert special_ids(wordpiece()) == SpecialIds(cls=2, sep=3, mask=4, pad=0, vocab_size=len(wordpiece()))
    assert special_ids(unigram()) == SpecialIds(cls=0, sep=2, mask=4, pad=1, vocab_size=len(unigram()))
    grown = wordpiece()
    grown.add_tokens(["newword"])
    assert special_ids(grown).vocab_size == len(wordpiece()) + 1


def test_ordinary_text_is_tokenized_as_by_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the Thing", "being  the first", "Äé zzz", "unknown 漢", "x"]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert TextTokenizer(tokenizer)(texts) == expected
    assert all(expected)


def test_long_texts_are_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["a b c d", "a b c d e", ""]
    whole = TextTokenizer(tokenizer)(texts)
    limit = len(whole[0])
    encoder = TextTokenizer(tokenizer, max_tokens=limit)
    assert encoder(texts) == [ids[:limit] for ids in whole]
    assert encoder([]) == []
    ids, lengths, truncated = encoder.arrays(texts)
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)
    assert ids.tolist() == [*whole[0], *whole[1][:limit]]
    assert lengths.tolist() == [limit, limit, 0]
    assert truncated.tolist() == [False, True, False]
    assert [len(each) for each in encoder.arrays([])] == [0, 0, 0]


def test_arrays_equal_the_lists(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the Thing", "", "a [SEP] b </s>", "Äé " * 40, "x"]
    for limit in (1, 3, 126):
        encoder = TextTokenizer(tokenizer, max_tokens=limit)
        ids, lengths, _ = encoder.arrays(texts)
        assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == encoder(texts)


def test_a_pickled_tokenizer_gives_equal_results(tokenizer: PreTrainedTokenizerBase) -> None:
    """A copy in another process treats literal special tokens as the original does."""
    encoder = TextTokenizer(tokenizer, max_tokens=9)
    texts = ["the Thing", "a [SEP] b </s> [MASK]", "<s>", "x " * 20]
    assert pickle.loads(pickle.dumps(encoder))(texts) == encoder(texts)


def test_the_callers_tokenizer_is_not_modified(tokenizer: PreTrainedTokenizerBase) -> None:
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=3)
    before = backend.to_str()
    try:
        assert len(TextTokenizer(tokenizer)(["a b c d e f"])[0]) >= 6
        assert backend.to_str() == before
        assert not backend.encode_special_tokens
    finally:
        backend.no_truncation()
        backend.no_padding()


def forbidden(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


@pytest.mark.parametrize("literal", LITERALS)
def test_literal_specials_stay_text(tokenizer: PreTrainedTokenizerBase, literal: str) -> None:
    encoder = TextTokenizer(tokenizer)
    for text in (literal, f"the {literal} thing", f"a{literal}{literal}b", f"{literal[0]}{literal}{literal[1:]}"):
        (ids,) = encoder([text])
        assert forbidden(tokenizer).isdisjoint(ids)
        # The characters of the literal remain (the literal of the unknown token may itself be unknown).
        if literal != tokenizer.unk_token:
            spelled = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("##", "").replace("▁", "")
            assert spelled == text.replace(" ", "")


def test_special_tokens_that_normalisation_creates_stay_text() -> None:
    encoder = TextTokenizer(unigram())
    assert encoder(["\uff1c/s\uff1e"]) == encoder(["</s>"])  # full-width characters, which NFKC changes
    assert {0, 1, 2, 4}.isdisjoint(encoder(["a\uff1c/s\uff1eb"])[0])


def test_only_texts_with_a_literal_special_token_change() -> None:
    encoder = TextTokenizer(unigram())
    alone, mixed = encoder(["the thing"]), encoder(["</s>", "the thing", "<mask>"])
    assert mixed[1] == alone[0]


def test_a_special_token_of_one_character_is_removed() -> None:
    tokenizer = unigram()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("é", special=True)]})
    assert TextTokenizer(tokenizer)(["aéb"]) == [
        [id_ for id_ in TextTokenizer(unigram())(["aéb"])[0] if id_ != tokenizer.convert_tokens_to_ids("é")]
    ]


ENCODERS = [(TextTokenizer(each), forbidden(each)) for each in (wordpiece(), unigram())]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*LITERALS, "a", " ", "<", "</", "s>", "[", "]", "\u0301", "the", "漢"]), max_size=12))
def test_text_never_gives_special_ids(parts: list[str]) -> None:
    for encoder, specials in ENCODERS:
        assert specials.isdisjoint(encoder(["".join(parts)])[0])


def test_threads_give_equal_results(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = TextTokenizer(tokenizer)
    texts = [f"the thing {'</s> [SEP] ' * (i % 3)}{chr(97 + i % 26) * (i % 50)}" for i in range(400)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(encoder, [texts] * 8))
    assert all(result == encoder(texts) for result in results)


def test_the_fingerprint_is_equal_after_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(tokenizer)


def test_the_fingerprint_changes_with_the_ids(tmp_path: Path) -> None:
    grown, swapped = wordpiece(), wordpiece()
    grown.add_tokens(["newword"])
    swapped.cls_token, swapped.sep_token = swapped.sep_token, swapped.cls_token
    stripped = wordpiece()
    stripped.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    different = [wordpiece(), wordpiece(lowercase=True), unigram(), grown, swapped, stripped]
    assert len({tokenizer_fingerprint(each) for each in different}) == len(different)
    assert tokenizer_fingerprint(wordpiece()) == tokenizer_fingerprint(wordpiece())


def test_the_fingerprint_changes_if_loading_rebuilds_the_tokenizer(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(wordpiece().backend_tokenizer.to_str())
    careless = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]"
    )
    BertTokenizerFast(tokenizer_object=backend).save_pretrained(
        tmp_path
    )  # states do_lower_case=True for a cased tokenizer
    loaded = load_tokenizer(str(tmp_path))
    # Only some versions of transformers rebuild it. If the ids differ, the fingerprints must differ.
    alike = TextTokenizer(loaded)(["The Ä"]) == TextTokenizer(careless)(["The Ä"])
    assert (tokenizer_fingerprint(loaded) == tokenizer_fingerprint(careless)) == alike


def test_an_unusable_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder"):
        load_tokenizer(str(tmp_path / "absent"))

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="broken: cannot be loaded"):
        load_tokenizer(str(tmp_path / "broken"))

    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    with pytest.raises(UserError, match="slow: not a fast tokenizer"):
        load_tokenizer(str(tmp_path / "slow"))

    backend = Tokenizer.from_str(wordpiece().backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", pad_token="[PAD]").save_pretrained(
        tmp_path / "poor"
    )
    with pytest.raises(UserError, match="has no sep_token, mask_token"):
        load_tokenizer(str(tmp_path / "poor"))
