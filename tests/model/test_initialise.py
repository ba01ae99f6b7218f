"""Random models: sized for their tokenizer, equal for equal seeds, loadable by every Auto class."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "f"]
SIZES = {"layers": 2, "hidden": 32, "heads": 4, "max_positions": 40}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "architecture", "positions", "types"),
    [("bert", "BertForMaskedLM", 40, 2), ("xlm-roberta", "XLMRobertaForMaskedLM", 41, 1)],
)
def test_the_folder_is_complete(
    tmp_path: Path, tokenizer: str, family: str, architecture: str, positions: int, types: int
) -> None:
    init_model(tmp_path / "m", tokenizer, family, **SIZES)
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert config.model_type == family
    assert config.architectures == [architecture]
    assert (config.vocab_size, config.pad_token_id) == (len(WORDS), 0)
    assert (config.max_position_embeddings, config.type_vocab_size) == (positions, types)
    assert config.intermediate_size == 128
    for auto in (AutoModel, AutoModelForMaskedLM):
        model, info = auto.from_pretrained(tmp_path / "m", output_loading_info=True)
        assert not info["missing_keys"], auto
        # The last position is usable.
        model(input_ids=torch.full((1, 40), 5), attention_mask=torch.ones(1, 40))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert loaded("a b")["input_ids"] == [2, 5, 6, 3]
    assert loaded.model_max_length == 40


def test_the_seed_determines_the_weights_and_the_global_generator_is_unchanged(tmp_path: Path, tokenizer: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    init_model(tmp_path / "one", tokenizer, seed=1, **SIZES)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    init_model(tmp_path / "same", tokenizer, seed=1, **SIZES)
    init_model(tmp_path / "other", tokenizer, seed=2, **SIZES)
    one, same, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    assert one.keys() == same.keys() == other.keys()
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"):
        assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "gpt2"}, "family: found 'gpt2', expected one of bert, xlm-roberta"),
        ({"heads": 5}, "heads: found 5, expected a divisor of hidden, 32"),
        ({"layers": 0}, "layers: found 0"),
        ({"heads": 0}, "heads: found 0"),
        ({"max_positions": 2}, "max_positions: found 2"),
        ({"dropout": 1.0}, "dropout: found 1.0"),
    ],
)
def test_invalid_sizes_are_an_error(tmp_path: Path, tokenizer: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        init_model(tmp_path / "m", tokenizer, **{**SIZES, **options})
    assert not (tmp_path / "m").exists()


def test_invalid_folders_are_an_error(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        init_model(tmp_path / "m", str(tmp_path / "absent"))
    (tmp_path / "broken").mkdir()
    for file in Path(tokenizer).iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="broken: cannot be loaded"):
        init_model(tmp_path / "m", str(tmp_path / "broken"))
    with pytest.raises(UserError, match="not an empty folder"):
        init_model(tokenizer, tokenizer)
