"""Loading encoders and the parts that training needs."""

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

from ppa_fast.errors import UserError
from ppa_fast.model.encoder import (
    encoder_of,
    lm_head_of,
    load_encoder,
    load_masked_lm,
    max_sequence,
)
from ppa_fast.model.folder import untouched_weights
from tests.model.sizes import SIZES

BERT = BertConfig(**SIZES)
XLMR = XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1)


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


def test_max_sequence() -> None:
    assert max_sequence(BERT) == 40
    assert max_sequence(XLMR) == 38
