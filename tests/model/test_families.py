"""Every family against its own model in transformers, with padded batches and standard attention."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig, XLMConfig

from ppa_fast.errors import UserError
from ppa_fast.model import packed
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import (
    checkpoint_activations,
    cut_above,
    encoder_of,
    freeze,
    max_sequence,
    without_pooler,
)
from ppa_fast.model.families import FAMILIES, family_of
from ppa_fast.model.forward import hidden_states, use_packed_attention
from ppa_fast.model.packed import compile_layers, fuse_projections, pool_packed
from ppa_fast.ops.assemble import AssembledBatch, PackedSequences
from ppa_fast.training.optimizer import optimizer_for
from tests.model.configs import PACKED, PADDED
from tests.model.test_packed import gradients, stream_of

LENGTHS = [3, 1, 38, 7, 7, 2, 19, 6, 1, 8]
NO_GRADIENT = ("token_type_embeddings.weight", "key.bias", "k_lin.bias", "k_proj.bias")  # 0, or a sum that is 0


@pytest.fixture(params=[*PACKED])
def config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return copy.deepcopy(PACKED[request.param])


@pytest.fixture(params=[*PACKED, *PADDED])
def any_config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return copy.deepcopy({**PACKED, **PADDED}[request.param])


def model_of(config: PretrainedConfig, auto: Any = AutoModel, attention: str | None = None) -> Any:
    """Returns equal weights for equal configurations. No bias is zero, because a zero bias would hide an error."""
    torch.manual_seed(0)
    model = auto.from_config(copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def ours(config: PretrainedConfig) -> Any:
    encoder = model_of(config)
    use_packed_attention(encoder)
    fuse_projections(encoder)
    return encoder


def own_hidden(model: Any, stream: PackedSequences) -> Tensor:
    """Hidden states [T, H] from transformers' own forward on a padded batch."""
    ids, mask = stream.padded(pad=model.config.pad_token_id)
    first = family_of(model.config).first_position(model.config)
    options = {}
    if model.config.model_type in FAMILIES:  # others compute positions from the ids
        options["position_ids"] = (torch.arange(ids.shape[1]) + first).expand_as(ids)
    return model(input_ids=ids, attention_mask=mask.long(), **options).last_hidden_state[mask]


def test_every_packed_family_is_tested() -> None:
    assert FAMILIES.keys() - PACKED.keys() <= {"gte"}
    assert PACKED.keys() <= FAMILIES.keys()


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [33]], ids=str)
def test_the_packed_forward_equals_the_models_own(config: PretrainedConfig, lengths: list[int]) -> None:
    encoder, plain, stream = ours(config), model_of(config, attention="eager"), stream_of(lengths)
    hidden, expected = hidden_states(encoder, stream), own_hidden(plain, stream)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
    found, wanted = gradients(encoder, hidden), gradients(plain, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
        if not name.endswith(NO_GRADIENT) and len(stream.tokens) > 40:
            assert gradient.abs().max() > 1e-3, name


def test_sequences_do_not_affect_each_other(config: PretrainedConfig) -> None:
    encoder, stream = ours(config).eval(), stream_of(LENGTHS)
    before = hidden_states(encoder, stream)
    stream.tokens[4:42] = (stream.tokens[4:42] + 7) % 60  # the third sequence
    same = (hidden_states(encoder, stream) == before).all(1)
    assert same[:4].all()
    assert same[42:].all()
    assert not same[4:42].any()


def plain_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """The result of flash attention, computed sequence by sequence."""
    outputs = []
    for start, end in pairwise(cu_seqlens.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        places = torch.arange(end - start)
        near = (places - places[:, None]).abs() < (window or end)
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=scale).transpose(0, 1))
    return torch.cat(outputs)


def test_flash_attention_gets_windows_and_repeated_heads(
    config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(LENGTHS)
    monkeypatch.setattr(packed, "has_flash", lambda *_: True)
    monkeypatch.setattr(packed, "flash_attention", plain_flash)
    expected = own_hidden(model_of(config, attention="eager").eval(), stream)
    torch.testing.assert_close(hidden_states(ours(config).eval(), stream), expected, atol=1e-5, rtol=0)


def test_a_packed_row_needs_no_mask(config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a mask of T × T was made")

    encoder = ours(config).eval()
    monkeypatch.setitem(packed.AttentionMaskInterface._global_mapping, packed.ATTENTION, never)
    assert hidden_states(encoder, stream_of(LENGTHS)).isfinite().all()


def test_sliding_windows_bound_the_influence_across_layers() -> None:
    """Two local layers propagate a token's influence over 8 positions and no further."""
    config = copy.deepcopy(PACKED["modernbert"])
    config.layer_types = ["sliding_attention"] * 4
    config.num_hidden_layers = 2
    encoder, stream = ours(config).eval(), stream_of([5, 38, 3])
    before = hidden_states(encoder, stream)
    stream.tokens[5 + 20] = (stream.tokens[5 + 20] + 7) % 60
    changed = (hidden_states(encoder, stream) != before).any(1).nonzero()[:, 0] - 5
    assert changed.tolist() == [*range(12, 29)]


def test_each_layer_has_its_weights(config: PretrainedConfig) -> None:
    family, encoder = family_of(config), model_of(config)
    layers = family.layers(encoder)
    assert len(layers) == config.num_hidden_layers
    for layer in layers:
        assert sum(p.numel() for p in layer.parameters() if p.dim() == 2) == family.layer_weights(config)


@pytest.mark.parametrize("frozen", [{0, 1}, {1}, {2}, {0, 2}, {0}], ids=str)
def test_frozen_parts_keep_their_bits_and_others_change(any_config: PretrainedConfig, frozen: set[int]) -> None:
    """The lower or the upper half of the layers, with the embeddings or without."""
    encoder = model_of(any_config)
    use_packed_attention(encoder)
    layers = family_of(any_config).layers(encoder)
    if not layers and frozen != {0}:
        with pytest.raises(UserError, match=r"^freeze_layers: found model type 'albert', whose layers cannot be told"):
            freeze(encoder, frozen)
        return
    freeze(encoder, frozen)
    parts = dict.fromkeys(("embeddings", "embed_tokens"), 0)
    parts |= {name: list(layers).index(module) + 1 for name, module in encoder.named_modules() if module in [*layers]}
    still = tuple(f"{name}." for name, part in parts.items() if part in frozen)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    whole = model_of(any_config)
    used = gradients(whole, hidden_states(whole, stream_of(LENGTHS))).keys()  # not the pooler
    optimizer = optimizer_for(encoder, 0.01, 1e-2, (0.9, 0.999), 1e-8)
    for _ in range(2):
        gradients(encoder, hidden_states(encoder, stream_of(LENGTHS)))
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in used if not name.startswith(still)}


def test_vectors_of_a_layer_are_those_of_the_encoder_cut_there(any_config: PretrainedConfig, tmp_path: Path) -> None:
    """The contrast's vectors of layer N and those of an exported encoder that ends there, loaded by transformers.

    A norm after the last layer is part of both."""
    mlm, stream = model_of(any_config, AutoModelForMaskedLM).eval(), stream_of(LENGTHS)
    model = AlignmentModel(mlm, "mean", 0, contrast_layer=1).eval()
    vectors, last = model.project(stream), AlignmentModel(mlm, "mean", 0).eval().project(stream)
    assert not torch.allclose(vectors, last, atol=1e-2)
    batch = batch_of(LENGTHS)
    torch.testing.assert_close(model(batch)[1], vectors, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(batch)[0], AlignmentModel(mlm, "mean", 0)(batch)[0])  # TLM is as it was
    encoder = encoder_of(mlm)
    if any_config.model_type == "albert":
        with pytest.raises(UserError, match=r"^layers: found model type 'albert', whose layers cannot be told apart"):
            cut_above(encoder, 1)
        return
    cut_above(encoder, 1)
    encoder.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **without_pooler(any_config))
    assert (loaded.config.num_hidden_layers, info["missing_keys"], info["unexpected_keys"]) == (1, set(), set())
    pooled = pool_packed(own_hidden(loaded, stream), stream.cu_seqlens, "mean")
    torch.testing.assert_close(F.normalize(pooled, dim=1), vectors, atol=1e-5, rtol=0)


def test_activation_checkpointing_does_not_change_results(config: PretrainedConfig) -> None:
    encoder, stream = ours(config), stream_of(LENGTHS)
    expected = gradients(encoder, hidden_states(encoder, stream))
    checkpoint_activations(encoder)
    found = gradients(encoder, hidden_states(encoder, stream))
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_compiled_layers_accept_all_lengths(config: PretrainedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile(self, backend="eager", **how))
    encoder, compiled = ours(config).eval(), ours(config).eval()
    torch._dynamo.reset()
    compile_layers(compiled)
    for lengths in (LENGTHS, [4, 9], [30, 2, 2, 11, 5]):
        stream = stream_of(lengths)
        torch.testing.assert_close(hidden_states(compiled, stream), hidden_states(encoder, stream), atol=1e-5, rtol=0)


def batch_of(lengths: list[int]) -> AssembledBatch:
    """A batch in which every third token is masked."""
    stream = stream_of(lengths)
    positions = torch.arange(0, len(stream.tokens), 3)
    labels = torch.randint(0, 60, (len(positions),), generator=torch.Generator().manual_seed(3))
    return AssembledBatch(stream, stream, stream, positions, labels, torch.zeros(len(lengths), dtype=torch.bool))


def test_tlm_loss_and_gradients_equal_those_of_the_masked_language_model(any_config: PretrainedConfig) -> None:
    batch, mlm = batch_of(LENGTHS), model_of(any_config, AutoModelForMaskedLM, "eager")
    trained = model_of(any_config, AutoModelForMaskedLM)
    if any_config.model_type == "eurobert":
        assert trained.get_output_embeddings().weight is not trained.get_input_embeddings().weight
    loss, _ = AlignmentModel(trained, "mean", 16, contrast=None)(batch)
    ids, mask = batch.tlm.padded(any_config.pad_token_id)
    options = {}
    if any_config.model_type in FAMILIES:
        first = family_of(any_config).first_position(any_config)
        options["position_ids"] = (torch.arange(ids.shape[1]) + first).expand_as(ids)
    logits = mlm(input_ids=ids, attention_mask=mask.long(), **options).logits[mask]
    expected = F.cross_entropy(logits[batch.masked_positions], batch.labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    for (name, parameter), own in zip(trained.named_parameters(), mlm.parameters(), strict=True):
        if own.grad is not None:
            torch.testing.assert_close(parameter.grad, own.grad, rtol=1e-4, atol=1e-4, msg=name)
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_other_model_types_use_the_padded_forward(any_config: PretrainedConfig) -> None:
    encoder, stream = model_of(any_config).eval(), stream_of(LENGTHS)
    use_packed_attention(encoder)
    assert (encoder.config._attn_implementation == packed.ATTENTION) == (any_config.model_type in FAMILIES)
    plain = model_of(any_config, attention="eager").eval()
    torch.testing.assert_close(hidden_states(encoder, stream), own_hidden(plain, stream), atol=1e-5, rtol=0)
    after_pad = {"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}
    assert max_sequence(any_config) == (38 if any_config.model_type in after_pad else 40)


def test_layers_of_other_model_types() -> None:
    two_lists = XLMConfig(vocab_size=60, emb_dim=32, n_layers=2, n_heads=4)
    for name, config in {**PADDED, "xlm": two_lists}.items():
        layers = family_of(config).layers(encoder_of(model_of(config)))
        assert len(layers) == (0 if name in ("albert", "xlm") else config.num_hidden_layers)
