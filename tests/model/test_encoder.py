"""Loading encoders, pooling, and sentence vectors against a plain loop over sentences."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from ppa_fast.data.encode import SpecialIds
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import (
    encoder_of,
    lm_head_of,
    load_encoder,
    load_masked_lm,
    max_sequence,
    pool,
    sentence_vectors,
)
from ppa_fast.model.folder import untouched_weights

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    # Larger than usual: vectors of a freshly initialised model differ too little to show an error.
    "initializer_range": 0.2,
}
BERT = BertConfig(**SIZES)
XLMR = XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1)
SPECIAL = {
    "bert": SpecialIds(cls=2, sep=3, mask=4, pad=0, vocab_size=60),
    "xlm-roberta": SpecialIds(cls=0, sep=2, mask=59, pad=1, vocab_size=60),
}
ROWS = [list(range(10, 10 + n)) for n in (3, 38, 0, 7, 1, 7, 20, 3)]


def masked_lm(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).eval()


@pytest.mark.parametrize("config", [BERT, XLMR], ids=["bert", "xlm-roberta"])
def test_masked_lm_comes_back_whole(tmp_path: Path, config: PretrainedConfig) -> None:
    saved = masked_lm(config)
    saved.to(torch.float16).save_pretrained(tmp_path)
    loaded = load_masked_lm(str(tmp_path))
    assert loaded.dtype == torch.float32
    assert loaded.config._attn_implementation == "sdpa"
    state = loaded.state_dict()
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in saved.state_dict().items())
    ids = torch.tensor([[5, 6, 7]])
    hidden = encoder_of(loaded)(input_ids=ids).last_hidden_state
    assert torch.equal(lm_head_of(loaded)(hidden), loaded(input_ids=ids).logits)


def test_old_hub_checkpoint_without_safetensors(tmp_path: Path) -> None:
    saved = BertForPreTraining(BERT)
    BERT.save_pretrained(tmp_path)
    # As mBERT's pytorch_model.bin: LayerNorm has gamma and beta, the tied decoder and the position ids are stored.
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in saved.state_dict().items()
        if name != "cls.predictions.decoder.bias"
    }
    state["bert.embeddings.position_ids"] = torch.arange(40).unsqueeze(0)
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_masked_lm(str(tmp_path))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name]), name
    untouched = untouched_weights(str(tmp_path), loaded)
    assert sorted(untouched) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    ]
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in untouched.items())


@pytest.mark.parametrize("model", [BertModel(BERT), XLMRobertaModel(XLMR)], ids=["bert", "xlm-roberta"])
def test_folder_without_head_is_an_encoder_but_no_masked_lm(tmp_path: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the MLM head is missing"):
        load_masked_lm(str(tmp_path))
    loaded = load_encoder(str(tmp_path)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_load_encoder_takes_other_architectures_and_checkpoints_without_pooler(tmp_path: Path) -> None:
    BertForMaskedLM(BERT).save_pretrained(tmp_path / "bert")
    assert load_encoder(str(tmp_path / "bert")).config.model_type == "bert"
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    encoder = load_encoder(str(tmp_path / "distilbert"))
    assert max_sequence(encoder.config) == 40
    vectors = sentence_vectors(encoder, ROWS, SPECIAL["bert"], "mean", layer=1)
    assert vectors.shape == (len(ROWS), 32)


def test_folders_that_cannot_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "absent"), "./absent", "runs/absent", "a/b/absent"):
        with pytest.raises(UserError, match="absent: no such folder"):
            load_masked_lm(name)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_masked_lm(str(tmp_path))
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="'gpt2' cannot be trained; expected one of bert, roberta, xlm-roberta"):
        load_masked_lm(str(tmp_path / "gpt2"))
    masked_lm(BERT).save_pretrained(tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_masked_lm(str(tmp_path / "bert"))


def test_checkpoint_of_another_depth_is_refused(tmp_path: Path) -> None:
    masked_lm(BERT).save_pretrained(tmp_path)
    BertConfig(**{**SIZES, "num_hidden_layers": 3}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 16 encoder weights, the first is bert\.encoder\.layer\.2"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(UserError, match="lacks 16 encoder weights"):
        load_encoder(str(tmp_path))


def test_pool_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 70.0]], [[4.0, 0.0], [0.0, 4.0], [5.0, 5.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 2.0], [4.0, 0.0]]
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 4.0], [3.0, 3.0]]
    assert pool(hidden, mask.bool(), "mean").tolist() == [[2.0, 4.0], [3.0, 3.0]]
    with pytest.raises(UserError, match="pooling: found 'max', expected one of cls, mean"):
        pool(hidden, mask, "max")


def test_pool_sums_in_fp32() -> None:
    hidden = torch.full((1, 1024, 1), 1.0078125, dtype=torch.bfloat16)  # the first bf16 number above 1
    assert pool(hidden, torch.ones(1, 1024), "mean").item() == 1.0078125


def one_by_one(
    encoder: torch.nn.Module, special: SpecialIds, pooling: str, layer: int | None, rows: list[list[int]]
) -> torch.Tensor:
    vectors = []
    for row in rows:
        output = encoder(input_ids=torch.tensor([[special.cls, *row, special.sep]]), output_hidden_states=True)
        hidden = output.hidden_states[-1 if layer is None else layer][0]
        vectors.append(hidden[0] if pooling == "cls" else hidden.mean(0))
    return torch.stack(vectors).detach()


@pytest.mark.parametrize("config", [BERT, XLMR], ids=["bert", "xlm-roberta"])
@pytest.mark.parametrize(("pooling", "layer"), [("cls", None), ("mean", None), ("mean", 1), ("mean", 0), ("cls", 2)])
def test_sentence_vectors_equal_a_loop(config: PretrainedConfig, pooling: str, layer: int | None) -> None:
    encoder, special = encoder_of(masked_lm(config)), SPECIAL[config.model_type]
    # XLM-R's longest sentence is shorter: its positions start behind the padding id.
    rows = [row[: max_sequence(config) - 2] for row in ROWS]
    assert max(map(len, rows)) + 2 == {"bert": 40, "xlm-roberta": 38}[config.model_type]
    expected = one_by_one(encoder, special, pooling, layer, rows)
    for tokens_per_batch in (1, 50, 16384):
        vectors = sentence_vectors(encoder, rows, special, pooling, layer, tokens_per_batch=tokens_per_batch)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected[0], expected[3], atol=1e-2)


def test_sentence_vectors_switch_dropout_off_and_restore_every_mode() -> None:
    encoder = encoder_of(masked_lm(BERT))
    expected = sentence_vectors(encoder, ROWS, SPECIAL["bert"], "mean")
    encoder.train()
    encoder.embeddings.eval()
    modes = [module.training for module in encoder.modules()]
    assert torch.equal(sentence_vectors(encoder, ROWS, SPECIAL["bert"], "mean"), expected)
    assert [module.training for module in encoder.modules()] == modes
    assert not expected.requires_grad


def test_sentence_vectors_under_bf16_weights() -> None:
    encoder = encoder_of(masked_lm(BERT))
    expected = sentence_vectors(encoder, ROWS, SPECIAL["bert"], "mean")
    vectors = sentence_vectors(encoder.to(torch.bfloat16), ROWS, SPECIAL["bert"], "mean")
    assert vectors.dtype == torch.float32
    # Pooled in fp32: the mean is no bf16 number, and still near the fp32 model's.
    assert not torch.equal(vectors, vectors.bfloat16().float())
    torch.testing.assert_close(vectors, expected, atol=0.1, rtol=0)


def test_sentence_vectors_of_nothing() -> None:
    assert sentence_vectors(encoder_of(masked_lm(BERT)), [], SPECIAL["bert"], "cls").shape == (0, 32)


def test_sentence_vectors_refuse_what_the_encoder_does_not_have() -> None:
    encoder = encoder_of(masked_lm(BERT))
    for layer in (-1, 3):
        with pytest.raises(UserError, match=rf"layer: found {layer}, expected 0 .* to 2"):
            sentence_vectors(encoder, ROWS, SPECIAL["bert"], "mean", layer)
    with pytest.raises(UserError, match="pooling: found 'max'"):
        sentence_vectors(encoder, ROWS, SPECIAL["bert"], "max")
    with pytest.raises(UserError, match="39 tokens and two specials; the model has 40 positions"):
        sentence_vectors(encoder, [[5] * 39], SPECIAL["bert"], "mean")


def test_max_sequence() -> None:
    assert max_sequence(BERT) == 40
    assert max_sequence(XLMR) == 38
