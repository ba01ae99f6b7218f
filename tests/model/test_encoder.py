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
    EuroBertConfig,
    EuroBertModel,
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
    lacks_lm_head,
    lm_decoder,
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
def test_a_masked_lm_loads_completely(tmp_path: Path, config: PretrainedConfig) -> None:
    saved = masked_lm(config)
    saved.to(torch.float16).save_pretrained(tmp_path)
    loaded = load_masked_lm(str(tmp_path))
    assert loaded.dtype == torch.float32
    state = loaded.state_dict()
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in saved.state_dict().items())
    ids = torch.tensor([[5, 6, 7]])
    hidden = encoder_of(loaded)(input_ids=ids).last_hidden_state
    head = loaded.cls if config is BERT else loaded.lm_head
    assert torch.equal(head(hidden), loaded(input_ids=ids).logits)
    assert not lacks_lm_head(str(tmp_path))


def test_an_old_checkpoint_without_safetensors_loads(tmp_path: Path) -> None:
    saved = BertForPreTraining(BERT)
    BERT.save_pretrained(tmp_path)
    # As in mBERT's pytorch_model.bin, LayerNorm has gamma and beta, and the tied decoder and position ids are stored.
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


EURO = EuroBertConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, mask_token_id=3)  # decoder not tied


@pytest.mark.parametrize(
    "model", [BertModel(BERT), XLMRobertaModel(XLMR), EuroBertModel(EURO)], ids=["bert", "xlm-roberta", "eurobert"]
)
def test_a_folder_without_a_head_loads_as_an_encoder_or_with_a_new_head(tmp_path: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(tmp_path)
    assert lacks_lm_head(str(tmp_path))
    with pytest.raises(UserError, match="the MLM head is missing"):
        load_masked_lm(str(tmp_path))
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    loaded = load_encoder(str(tmp_path))
    assert loaded.state_dict().keys() == weights.keys()
    assert encoder_of(loaded) is loaded
    made = [load_masked_lm(str(tmp_path), head_seed) for head_seed in (3, 3, 4)]
    for found in (loaded, *map(encoder_of, made)):
        assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in weights.items())
    assert lm_decoder(made[0]).weight is made[0].get_input_embeddings().weight
    heads = [{name: p for name, p in m.named_parameters() if not name.startswith(m.base_model_prefix)} for m in made]
    assert all(torch.equal(p, heads[1][name]) for name, p in heads[0].items())
    assert all(torch.equal(p, heads[2][name]) for name, p in heads[0].items()) == (
        model.config is EURO
    )  # it has no head


def test_load_encoder_accepts_other_architectures_and_checkpoints_without_pooler(tmp_path: Path) -> None:
    BertForMaskedLM(BERT).save_pretrained(tmp_path / "bert")
    assert load_encoder(str(tmp_path / "bert")).config.model_type == "bert"
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    encoder = load_encoder(str(tmp_path / "distilbert"))
    assert max_sequence(encoder.config) == 40


def test_an_unusable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "absent"), "./absent", "runs/absent", "a/b/absent"):
        with pytest.raises(UserError, match="absent: no such folder"):
            load_masked_lm(name)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_masked_lm(str(tmp_path))
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="'gpt2' cannot be trained; expected a text encoder"):
        load_masked_lm(str(tmp_path / "gpt2"))
    masked_lm(BERT).save_pretrained(tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_masked_lm(str(tmp_path / "bert"))


def test_a_checkpoint_with_another_number_of_layers_is_an_error(tmp_path: Path) -> None:
    masked_lm(BERT).save_pretrained(tmp_path)
    BertConfig(**{**SIZES, "num_hidden_layers": 3}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 16 encoder weights, the first is bert\.encoder\.layer\.2"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(UserError, match="lacks 16 encoder weights"):
        load_encoder(str(tmp_path))


def test_max_sequence_depends_on_the_position_offset() -> None:
    assert max_sequence(BERT) == 40
    assert max_sequence(XLMR) == 38
