"""The model of a step: TLM against Hugging Face's own loss, positions, freezing."""

import copy
from itertools import pairwise

import pytest
import torch

from ppa_fast.data.loading.batching import micro_batches
from ppa_fast.data.loading.packing import packer_for
from ppa_fast.data.store.store import Store
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import encoder_of, freeze, lm_decoder, lm_transform, load_masked_lm
from ppa_fast.model.initialise import init_model
from ppa_fast.model.objective import Weights, moco_loss, objective
from ppa_fast.model.queue import KeyQueue
from ppa_fast.ops.assemble import assemble


@pytest.fixture(params=["bert", "xlm-roberta"])
def mlm(request, tiny, tmp_path):
    init_model(
        tmp_path / "m",
        str(tiny.tokenizer),
        family=request.param,
        layers=2,
        hidden=32,
        heads=2,
        max_positions=64,
        seed=2,
    )
    return load_masked_lm(str(tmp_path / "m")).eval()


def batch_of(tiny, rows, p=0.15):
    import numpy as np

    store = Store.open(tiny.store)
    rows = np.asarray(rows, dtype=np.int64)
    draws = {"seed": 3, "mask_probability": p, "input_shuffling": True}
    (b,) = micro_batches(packer_for(store, **draws), rows, rows * 0, 1)
    s = store.special
    fields = (b.a_tokens, b.a_offsets, b.b_tokens, b.b_offsets, b.pair_ids, b.epochs, b.layout)
    sizes = {"cls": s.cls, "sep": s.sep, "mask": s.mask, "vocab_size": s.vocab_size}
    return assemble(*fields, **draws, **sizes), s, b


def test_the_lm_head_in_two_parts_equals_hugging_faces(mlm):
    hidden, decoder = torch.randn(5, mlm.config.hidden_size), lm_decoder(mlm)
    torch.nn.init.normal_(decoder.bias)
    logits = torch.nn.functional.linear(lm_transform(mlm, hidden), decoder.weight, decoder.bias)
    head = mlm.cls if mlm.config.model_type == "bert" else mlm.lm_head
    assert torch.equal(logits, head(hidden))
    assert decoder.weight is mlm.get_input_embeddings().weight


def test_tlm_loss_and_gradients_equal_hugging_faces_on_the_same_sequence(tiny, mlm):
    assembled, special, _ = batch_of(tiny, range(12), p=0.3)
    assembled.tlm.tokens[assembled.masked_positions[0]] = (
        special.pad
    )  # masking can insert any id, including the padding id
    model = AlignmentModel(mlm, "cls", 16, contrast=None).eval()
    torch.nn.init.normal_(lm_decoder(mlm).bias)
    names, parameters = zip(*((n, p) for n, p in mlm.named_parameters() if p.requires_grad), strict=True)
    got, _ = model(assembled)
    found = torch.autograd.grad(got, parameters)
    expected, bounds = torch.zeros(()), assembled.tlm.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        here = (assembled.masked_positions >= start) & (assembled.masked_positions < end)
        labels = torch.full((end - start,), -100)
        labels[assembled.masked_positions[here] - start] = assembled.labels[here]
        positions = torch.arange(end - start) + (0 if mlm.config.model_type == "bert" else special.pad + 1)
        ids = assembled.tlm.tokens[start:end]
        output = mlm(ids[None], labels=labels[None], position_ids=positions[None])
        if here.any():
            expected = expected + output.loss * int(here.sum())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    # The embedding's gradient has two parts, as input and as decoder; the row of the padding id has only the second.
    for name, ours, theirs in zip(names, found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_loss_has_the_decoders_parameters_with_their_names(mlm):
    """This also holds in a copy of another type, as the momentum encoder is."""
    model = AlignmentModel(mlm, "cls", 16)
    names = [f"mlm.{name}" for name, _ in mlm.named_parameters()]
    assert [n for n, _ in model.named_parameters() if not n.startswith("projection.")] == names
    copied = copy.deepcopy(model).to(torch.bfloat16)
    for each in (model, copied):
        decoder = lm_decoder(each.mlm)
        assert each.lm_loss.weight is decoder.weight is each.mlm.get_input_embeddings().weight
        assert each.lm_loss.bias is decoder.bias
    assert copied.lm_loss.weight is not model.lm_loss.weight


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_query_vectors_are_unit_projections_of_single_sentences(tiny, mlm, pooling):
    assembled, _, _ = batch_of(tiny, range(7))
    model = AlignmentModel(mlm, pooling, 16).eval()
    with torch.no_grad():
        _, query = model(assembled)
        for row, tokens in zip(
            query, assembled.query.tokens.split(assembled.query.cu_seqlens.diff().tolist()), strict=True
        ):
            encoder = mlm.bert if mlm.config.model_type == "bert" else mlm.roberta
            hidden = encoder(tokens[None]).last_hidden_state[0]
            vector = model.projection(hidden[0] if pooling == "cls" else hidden.mean(0))
            torch.testing.assert_close(row, vector / vector.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(7))


def test_parameters_that_no_objective_trains_are_frozen(tiny, mlm):
    trained = {n for n, p in AlignmentModel(mlm, "cls", 16).named_parameters() if p.requires_grad}
    mlm.requires_grad_(True)
    assert trained == {n for n, _ in AlignmentModel(mlm, "cls", 16).named_parameters()}
    no_moco = {n for n, p in AlignmentModel(mlm, "cls", 16, contrast=None).named_parameters() if p.requires_grad}
    assert trained - no_moco == {n for n in trained if n.startswith("projection.")}


def test_without_tlm_there_is_no_head(tiny, mlm):
    encoder = copy.deepcopy(encoder_of(mlm))
    model = AlignmentModel(encoder, "cls", 16, tlm=False).eval()
    assert {n for n, _ in model.mlm.named_parameters()} == {n for n, _ in encoder.named_parameters()}
    assembled, _, _ = batch_of(tiny, range(7))
    tlm, query = model(assembled)
    assert tlm == 0
    whole = AlignmentModel(mlm, "cls", 16).eval()
    whole.projection.load_state_dict(model.projection.state_dict())
    torch.testing.assert_close(query, whole(assembled)[1])


def test_frozen_layers_and_embeddings_are_not_trained(mlm):
    freeze(encoder_of(mlm), {0, 1})
    model = AlignmentModel(encoder_of(mlm), "cls", 16, tlm=False)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".layer.1." in name or name.startswith("projection.") for name in trained)


def test_the_objectives_of_micro_batches_add_up_to_that_of_the_step(tiny, mlm):
    model = AlignmentModel(mlm, "mean", 16).eval()
    weights = Weights(tlm=0.7, contrast=1.3, temperature=0.05)
    queue = KeyQueue(32, 12, 16)
    generator = torch.Generator().manual_seed(0)
    queue.fill(torch.nn.functional.normalize(torch.randn(20, 16, generator=generator), dim=1), torch.arange(20))
    masked = len(batch_of(tiny, range(12))[0].labels)

    def total(rows):
        assembled, _, batch = batch_of(tiny, rows)
        tlm, query = model(assembled)
        keys = model.project(assembled.key)
        return objective(tlm, moco_loss(query, keys, batch.groups, queue, weights), weights, masked, 12).total

    with torch.no_grad():
        whole, parts = total(range(12)), [total(range(1)), total(range(1, 9)), total(range(9, 12))]
        tlm, _ = model(batch_of(tiny, range(12))[0])
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)
    assert masked > 0
    assert float(whole) > 0.7 * float(tlm) / masked
