"""The model of the step: TLM against Hugging Face's own loss, positions, freezing."""

import copy
from itertools import pairwise

import pytest
import torch

from ppa_fast.data.batch import micro_batches
from ppa_fast.data.pack import packer_for
from ppa_fast.data.store import Store
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import freeze_layers, lm_decoder, lm_head_of, lm_transform, load_masked_lm
from ppa_fast.model.initialise import init_model
from ppa_fast.model.objective import Weights, objective
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


def test_lm_head_in_two_parts_is_hugging_faces(mlm):
    hidden, decoder = torch.randn(5, mlm.config.hidden_size), lm_decoder(mlm)
    torch.nn.init.normal_(decoder.bias)
    logits = torch.nn.functional.linear(lm_transform(mlm, hidden), decoder.weight, decoder.bias)
    assert torch.equal(logits, lm_head_of(mlm)(hidden))
    assert decoder.weight is mlm.get_input_embeddings().weight


def test_tlm_loss_and_gradients_are_hugging_faces_on_the_same_sequence(tiny, mlm):
    assembled, special, _ = batch_of(tiny, range(12), p=0.3)
    assembled.tlm.tokens[assembled.masked_rows[0]] = special.pad  # masking may draw any id, the padding's too
    model = AlignmentModel(mlm, "cls", 16, moco=False).eval()
    torch.nn.init.normal_(lm_decoder(mlm).bias)
    names, parameters = zip(*((n, p) for n, p in mlm.named_parameters() if p.requires_grad), strict=True)
    got, _ = model(assembled)
    found = torch.autograd.grad(got, parameters)
    expected, bounds = torch.zeros(()), assembled.tlm.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        here = (assembled.masked_rows >= start) & (assembled.masked_rows < end)
        labels = torch.full((end - start,), -100)
        labels[assembled.masked_rows[here] - start] = assembled.labels[here]
        positions = torch.arange(end - start) + (0 if mlm.config.model_type == "bert" else special.pad + 1)
        ids = assembled.tlm.tokens[start:end]
        output = mlm(ids[None], labels=labels[None], position_ids=positions[None])
        if here.any():
            expected = expected + output.loss * int(here.sum())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    # The embedding's gradient has two parts, as input and as decoder; the padding's row has only the second.
    for name, ours, theirs in zip(names, found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_loss_has_the_decoders_parameters_under_the_decoders_names(mlm):
    """In a copy, of another type, too: the momentum encoder."""
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
def test_query_vectors_are_unit_projections_of_each_sentence_alone(tiny, mlm, pooling):
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


def test_what_no_objective_trains_is_frozen(tiny, mlm):
    trained = {n for n, p in AlignmentModel(mlm, "cls", 16).named_parameters() if p.requires_grad}
    mlm.requires_grad_(True)
    no_tlm = {n for n, p in AlignmentModel(mlm, "cls", 16, tlm=False).named_parameters() if p.requires_grad}
    words = mlm.get_input_embeddings().weight  # tied to the head, but the encoder reads it
    head = {n for n, p in mlm.named_parameters(prefix="mlm") if (".cls." in n or ".lm_head." in n) and p is not words}
    assert head
    assert trained - no_tlm == head
    mlm.requires_grad_(True)
    no_moco = {n for n, p in AlignmentModel(mlm, "cls", 16, moco=False).named_parameters() if p.requires_grad}
    assert trained - no_moco == {n for n in trained if n.startswith("projection.")}


def test_without_tlm_frozen_embeddings_stay_frozen(mlm):
    """To which the LM head, which nothing trains then, is tied."""
    freeze_layers(mlm, 1)
    trained = {n for n, p in AlignmentModel(mlm, "cls", 16, tlm=False).named_parameters() if p.requires_grad}
    assert trained
    assert all(".layer.1." in name or name.startswith("projection.") for name in trained)


def test_objective_of_micro_batches_adds_up_to_that_of_the_whole_step(tiny, mlm):
    model = AlignmentModel(mlm, "mean", 16).eval()
    weights = Weights(tlm=0.7, moco=1.3, temperature=0.05)
    queue = KeyQueue(32, 12, 16)
    generator = torch.Generator().manual_seed(0)
    queue.fill(torch.nn.functional.normalize(torch.randn(20, 16, generator=generator), dim=1), torch.arange(20))
    masked = len(batch_of(tiny, range(12))[0].labels)

    def total(rows):
        assembled, _, batch = batch_of(tiny, rows)
        tlm, query = model(assembled)
        keys = model.project(assembled.key)
        return objective(tlm, query, keys, batch.groups, queue, weights, masked, 12).total

    with torch.no_grad():
        whole, parts = total(range(12)), [total(range(1)), total(range(1, 9)), total(range(9, 12))]
        tlm, _ = model(batch_of(tiny, range(12))[0])
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)
    assert masked > 0
    assert float(whole) > 0.7 * float(tlm) / masked
