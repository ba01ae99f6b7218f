"""Embedders: loading, errors, and vectors equal to those of transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer, DistilBertConfig, DistilBertModel

from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import embedder as module
from ppa_fast.tasks.embedder import Embedder

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "dog", "cat", "un", "##do", "."]
TEXTS = ["the dog plays", "cat", "undo playing . dog dogs", "\u00ad", "dog dog cat"]


def make_model(folder: Path, family: str = "bert") -> str:
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}, do_lower_case=False)
    tokenizer.save_pretrained(folder / "tok")
    init_model(folder / "model", str(folder / "tok"), layers=3, hidden=32, heads=4, max_positions=12)
    if family == "distilbert":
        config = DistilBertConfig(
            vocab_size=len(VOCAB), dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=12
        )
        DistilBertModel(config).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@torch.no_grad()
def hidden_states(model: str, text: str, layer: int) -> torch.Tensor:
    ids = torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])
    hidden: torch.Tensor = AutoModel.from_pretrained(model)(input_ids=ids, output_hidden_states=True).hidden_states[
        layer
    ]
    return hidden[0]


@pytest.mark.parametrize("layer", [None, 2])
def test_sentence_vectors_equal_transformers(model: str, layer: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    found = Embedder(model, layer).sentences(TEXTS, "mean", "encoding")
    expected = torch.stack([hidden_states(model, text, -1 if layer is None else layer).mean(0) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_words_are_split_into_subwords(model: str) -> None:
    sentences = [["undo", "playing", "dog"], ["\u00ad", "cat", "zebra", "dogs"]]
    (first, words), (second, others) = Embedder(model, 2).words(sentences)[0]
    assert words.tolist() == [0, 0, 1, 1, 2]
    assert others.tolist() == [1, 2, 3, 3]  # a soft hyphen has no subword, an unknown word has one
    torch.testing.assert_close(first, hidden_states(model, "undo playing dog", 2)[1:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(second, hidden_states(model, "cat zebra dogs", 2)[1:-1], atol=1e-5, rtol=0)


def test_words_beyond_the_models_positions_are_truncated(model: str) -> None:
    embedded, longer = Embedder(model).words([["undo"] * 5, ["undo"] * 6, ["dog"]])
    assert [len(words) for _, words in embedded] == [10, 10, 1]
    assert embedded[1][1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert longer == [1]


def test_an_unusable_model_or_layer_is_an_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    with pytest.raises(UserError, match=r"layer: found 4, expected 0 .* to 3"):
        Embedder(folder, 4)
    with pytest.raises(UserError, match="no such folder"):
        Embedder(str(tmp_path / "absent"))
    larger = {word: i for i, word in enumerate([*VOCAB, "one", "more"])}
    BertTokenizer(vocab=larger).save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has 15 tokens, the encoder 13"):
        Embedder(folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_on_the_gpu_is_close_to_fp32(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    embedder = Embedder(folder)
    assert next(embedder.encoder.parameters()).dtype == torch.bfloat16
    found = embedder.sentences(TEXTS, "mean", "encoding")
    expected = torch.stack([hidden_states(folder, text, -1).mean(0) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
