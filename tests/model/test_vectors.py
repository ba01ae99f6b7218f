"""Sentence and token vectors against a loop over sentences, packed and padded."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from ppa_fast.data.store.tokenize import SpecialIds
from ppa_fast.errors import UserError
from ppa_fast.model import vectors
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.packed import ATTENTION
from ppa_fast.model.vectors import sentence_vectors, token_vectors
from tests.model.sizes import SIZES

CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
}
BERT = SpecialIds(cls=2, sep=3, mask=4, pad=0, vocab_size=60)
ROBERTA = SpecialIds(cls=0, sep=2, mask=59, pad=1, vocab_size=60)
ROWS = [list(range(10, 10 + n)) for n in (3, 38, 0, 7, 1, 7, 20, 3)]


def encoder_for(config: PretrainedConfig, attention: str = ATTENTION) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def special_of(encoder: PreTrainedModel) -> SpecialIds:
    return BERT if encoder.config.model_type == "bert" else ROBERTA


def rows_for(encoder: PreTrainedModel) -> list[list[int]]:
    """XLM-R's maximum sentence is shorter, because its positions start after the padding id."""
    return [row[: max_sequence(encoder.config) - 2] for row in ROWS]


@torch.no_grad()
def one_by_one(encoder: PreTrainedModel, layer: int | None, rows: list[list[int]]) -> list[torch.Tensor]:
    """The hidden states of each sentence, including special tokens."""
    special, hidden = special_of(encoder), []
    for row in rows:
        output = encoder(input_ids=torch.tensor([[special.cls, *row, special.sep]]), output_hidden_states=True)
        hidden.append(output.hidden_states[-1 if layer is None else layer][0])
    return hidden


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"], ids=["packed", "padded"])
@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_vectors_equal_a_loop(family: str, attention: str, layer: int | None) -> None:
    encoder = encoder_for(CONFIGS[family], attention)
    special, rows = special_of(encoder), rows_for(encoder)
    assert max(map(len, rows)) + 2 == (40 if family == "bert" else 38)
    hidden = one_by_one(encoder_for(CONFIGS[family], "sdpa"), layer, rows)
    expected = {"cls": torch.stack([h[0] for h in hidden]), "mean": torch.stack([h.mean(0) for h in hidden])}
    for tokens_per_batch in (1, 50, 16384):
        for pooling, wanted in expected.items():
            found = sentence_vectors(encoder, rows, special, pooling, layer, tokens_per_batch=tokens_per_batch)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        tokens = token_vectors(encoder, rows, special, layer, tokens_per_batch=tokens_per_batch)
        torch.testing.assert_close(tokens, [h[1:-1] for h in hidden], atol=1e-5, rtol=0)
    assert not torch.allclose(expected["mean"][0], expected["mean"][3], atol=1e-2)


def test_packed_attention_runs_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []

    def watch(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        read.append(tuple(options["input_ids"].shape))

    for attention in (ATTENTION, "sdpa"):
        encoder = encoder_for(CONFIGS["bert"], attention)
        encoder.register_forward_pre_hook(watch, with_kwargs=True)
        sentence_vectors(encoder, ROWS, BERT, "mean")
    assert read == [(1, sum(len(row) + 2 for row in ROWS)), (len(ROWS), 40)]


def test_other_architectures_use_the_padded_forward() -> None:
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40)
    encoder = AutoModel.from_config(config).eval()
    found = sentence_vectors(encoder, ROWS, BERT, "mean", layer=1)
    with torch.no_grad():
        wanted = encoder(input_ids=torch.tensor([[2, *ROWS[3], 3]]), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(found[3], wanted[0].mean(0), atol=1e-5, rtol=0)


def test_batches_start_with_the_longest_sentences_and_respect_the_token_limit() -> None:
    lengths = [len(row) + 2 for row in ROWS]
    for budget in (1, 50, 100, 16384):
        batches = list(vectors.length_batches(lengths, budget))
        order = [row for batch in batches for row in batch]
        assert sorted(order) == list(range(len(ROWS)))
        assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
        assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in batches)
    assert len(list(vectors.length_batches(lengths, 16384))) == 1


def test_dropout_is_off_and_every_mode_is_restored() -> None:
    encoder = encoder_for(CONFIGS["bert"])
    expected = sentence_vectors(encoder, ROWS, BERT, "mean")
    encoder.train()
    encoder.embeddings.eval()
    modes = [module.training for module in encoder.modules()]
    assert torch.equal(sentence_vectors(encoder, ROWS, BERT, "mean"), expected)
    assert [module.training for module in encoder.modules()] == modes
    assert not expected.requires_grad


def test_bf16_encoders_pool_in_fp32() -> None:
    encoder = encoder_for(CONFIGS["bert"])
    expected = sentence_vectors(encoder, ROWS, BERT, "mean")
    found = sentence_vectors(encoder.to(torch.bfloat16), ROWS, BERT, "mean")
    assert found.dtype == torch.float32
    # The mean is not representable in bf16, and is close to that of the fp32 model.
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_no_sentences_give_empty_vectors() -> None:
    encoder = encoder_for(CONFIGS["bert"])
    assert sentence_vectors(encoder, [], BERT, "cls").shape == (0, 32)
    assert token_vectors(encoder, [], BERT) == []
    assert token_vectors(encoder, [[]], BERT)[0].shape == (0, 32)


def test_an_unknown_layer_pooling_or_position_is_an_error() -> None:
    encoder = encoder_for(CONFIGS["bert"])
    for layer in (-1, 3):
        with pytest.raises(UserError, match=rf"layer: found {layer}, expected 0 .* to 2"):
            sentence_vectors(encoder, ROWS, BERT, "mean", layer)
    with pytest.raises(UserError, match="pooling: found 'max', expected one of cls, mean"):
        sentence_vectors(encoder, ROWS, BERT, "max")
    with pytest.raises(
        UserError,
        match="a sentence: found 39 tokens, expected at most 38; the model has 40 positions, two for specials",
    ):
        token_vectors(encoder, [[5] * 39], BERT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", list(CONFIGS))
def test_bf16_on_the_gpu_is_close_to_fp32_on_the_cpu(family: str) -> None:
    encoder = encoder_for(CONFIGS[family])
    special, rows = special_of(encoder), rows_for(encoder)
    expected = sentence_vectors(encoder, rows, special, "mean", layer=1)
    found = sentence_vectors(encoder.to("cuda", torch.bfloat16), rows, special, "mean", layer=1)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
