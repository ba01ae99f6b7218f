"""The packed forward against the padded one: values, gradients, dropout, independence of sequences."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from ppa_fast.errors import UserError
from ppa_fast.model.packed import (
    ATTENTION,
    Blocks,
    Packing,
    block_attention,
    compile_layers,
    flash_attention,
    fuse_projections,
    has_flash,
    join,
    packed_hidden,
    pool_packed,
)
from ppa_fast.ops.assemble import PackedSequences
from tests.model.sizes import SIZES

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1),
}
LENGTHS = [[5], [1], [38], [1, 1, 1], [3, 1, 38, 7, 7, 2, 20, 6, 1, 8], [4, 4, 4]]
MANY = LENGTHS[4]


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return copy.deepcopy(CONFIGS[request.param])


def encoder_for(config: PretrainedConfig, attention: str = ATTENTION, fused: bool = True, **changes: float) -> Any:
    """``fused``: with our attention, one product computes query, key and value."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.update(changes)
    encoder = AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):  # biases are zero at first, which would hide an error
            torch.nn.init.normal_(parameter, std=0.2)
    if fused and attention == ATTENTION:
        fuse_projections(encoder)
    return encoder


def stream_of(lengths: Sequence[int], seed: int = 0) -> PackedSequences:
    """Random tokens, including the padding id of each family, which masking can insert."""
    generator = torch.Generator().manual_seed(seed)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = torch.randint(0, 60, (int(bounds[-1]),), generator=generator, dtype=torch.int32)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return PackedSequences(
        tokens, torch.tensor(bounds, dtype=torch.int32), positions, np.array(lengths, dtype=np.int64)
    )


def padded_hidden(encoder: PreTrainedModel, stream: PackedSequences) -> Tensor:
    """Hidden states [T, H] from a padded batch."""
    ids, mask = stream.padded(pad=0)
    first = 0 if encoder.config.model_type == "bert" else encoder.config.pad_token_id + 1
    positions = (torch.arange(ids.shape[1]) + first).expand_as(ids)
    return encoder(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state[mask]


def gradients(encoder: PreTrainedModel, hidden: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden.dtype)
    encoder.zero_grad()
    (hidden * weights).sum().div(len(hidden)).backward()
    # The pooler is not used.
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("fused", [False, True], ids=["three products", "fused"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_equals_padded(
    config: PretrainedConfig, lengths: list[int], fused: bool, training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    changes = NO_DROPOUT if training else {}
    encoder = encoder_for(config, fused=fused, **changes).to(dtype).train(training)
    plain = encoder_for(config, "sdpa", **changes).to(dtype).train(training)
    stream = stream_of(lengths)
    hidden, expected = packed_hidden(encoder, stream), padded_hidden(plain, stream)
    assert hidden.dtype == dtype
    torch.testing.assert_close(hidden, expected, atol=tolerance, rtol=0)
    found, wanted = gradients(encoder, hidden), gradients(plain, expected)
    assert found.keys() == wanted.keys()
    assert len(found) == len([name for name, _ in encoder.named_parameters() if "pooler" not in name])
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=tolerance, msg=name)
        if name != "embeddings.token_type_embeddings.weight" and ".key.bias" not in name and len(stream.tokens) > 3:
            assert gradient.abs().max() > 100 * tolerance, name


def test_sequences_do_not_affect_each_other(config: PretrainedConfig) -> None:
    encoder = encoder_for(config).eval()
    stream = stream_of(MANY)
    before = packed_hidden(encoder, stream)
    bounds = stream.cu_seqlens.tolist()
    for i, (start, end) in enumerate(pairwise(bounds)):
        tokens = stream.tokens.clone()
        tokens[start:end] = (tokens[start:end] + 7) % 60
        after = packed_hidden(encoder, dataclasses.replace(stream, tokens=tokens))
        same = (after == before).all(1)
        assert same[:start].all(), i
        assert same[end:].all(), i
        assert not same[start:end].any(), i


def test_order_of_sequences_does_not_matter(config: PretrainedConfig) -> None:
    encoder = encoder_for(config).eval()
    stream = stream_of(MANY)
    parts = stream.tokens.split(MANY)
    turned = stream_of(MANY[::-1])
    turned = dataclasses.replace(turned, tokens=torch.cat(parts[::-1]))
    expected = torch.cat(packed_hidden(encoder, stream).split(MANY)[::-1])
    torch.testing.assert_close(packed_hidden(encoder, turned), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", [*NO_DROPOUT])
def test_dropout_is_random_and_depends_on_the_seed(config: PretrainedConfig, which: str) -> None:
    encoder = encoder_for(config, **{name: 0.3 if name == which else 0.0 for name in NO_DROPOUT})
    stream = stream_of(MANY)
    torch.manual_seed(5)
    first, second = (packed_hidden(encoder.train(), stream) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(packed_hidden(encoder, stream), first)
    assert not torch.allclose(first, second, atol=1e-2)
    still = packed_hidden(encoder.eval(), stream)
    assert torch.equal(still, packed_hidden(encoder, stream))
    assert not torch.allclose(still, first, atol=1e-2)


def test_attention_dropout_keeps_the_mean_and_drops_the_right_share() -> None:
    lengths = np.array([9, 30, 2])
    blocks = Blocks.of(lengths, torch.device("cpu"))
    torch.manual_seed(0)
    # All keys have equal weight, so an output is the share of kept probabilities, divided by (1 - p).
    query, key, value = torch.zeros(41, 2, 8), torch.randn(41, 2, 8), torch.ones(41, 2, 8)
    draws = torch.stack([block_attention(query, key, value, blocks, 0.25, 1.0) for _ in range(400)])[..., 0]
    for part, length in zip(draws.split(lengths.tolist(), 1), lengths.tolist(), strict=True):
        assert part.mean().item() == pytest.approx(1, abs=0.02)
        assert part.var().item() == pytest.approx(0.25 / 0.75 / length, rel=0.15)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_does_not_change_results(
    config: PretrainedConfig, dropout: float, reentrant: bool
) -> None:
    encoder = encoder_for(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
    stream = stream_of(MANY)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        hidden = packed_hidden(encoder, stream)
        results.append((hidden, gradients(encoder, hidden)))
        encoder.gradient_checkpointing_enable({"use_reentrant": reentrant})
    (hidden, plain), (again, checkpointed) = results
    assert torch.equal(hidden, again)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_padded_calls_equal_transformers(config: PretrainedConfig) -> None:
    encoder, plain = encoder_for(config).eval(), encoder_for(config, "sdpa").eval()
    stream = stream_of(MANY)
    assert torch.equal(padded_hidden(encoder, stream), padded_hidden(plain, stream))
    ids = stream.tokens[None, :20]
    assert torch.equal(encoder(ids).last_hidden_state, plain(ids).last_hidden_state)


def test_saved_copied_and_loaded_encoders_give_equal_results(tmp_path: Path, config: PretrainedConfig) -> None:
    encoder = encoder_for(config, "sdpa").eval()
    encoder.set_attn_implementation(ATTENTION)
    stream = stream_of(MANY)
    expected = packed_hidden(encoder, stream)
    assert torch.equal(packed_hidden(copy.deepcopy(encoder), stream), expected)
    encoder.save_pretrained(tmp_path)
    assert ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=ATTENTION)
    assert torch.equal(packed_hidden(loaded, stream), expected)


def test_fused_projections_use_the_modules_own_weights(config: PretrainedConfig) -> None:
    """A copy, such as the momentum encoder, uses its own weights. Parameter names do not change."""
    encoder, names = encoder_for(config).eval(), set(encoder_for(config, fused=False).state_dict())
    assert set(encoder.state_dict()) == names
    stream, copied = stream_of(MANY), copy.deepcopy(encoder)
    before = packed_hidden(encoder, stream)
    assert torch.equal(packed_hidden(copied, stream), before)
    with torch.no_grad():
        copied.encoder.layer[0].attention.self.value.weight.mul_(2)
    assert not torch.equal(packed_hidden(copied, stream), before)
    assert torch.equal(packed_hidden(encoder, stream), before)


def test_packed_bf16_is_as_accurate_as_padded_bf16(config: PretrainedConfig) -> None:
    stream = stream_of(MANY)
    exact = padded_hidden(encoder_for(config, "sdpa").eval().double(), stream)
    half = packed_hidden(encoder_for(config).eval().bfloat16(), stream)
    plain = padded_hidden(encoder_for(config, "sdpa").eval().bfloat16(), stream)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-5
    assert (half - exact).abs().mean() <= 2 * (plain - exact).abs().mean() + 1e-5


def test_join_concatenates_packed_sequences(config: PretrainedConfig) -> None:
    encoder = encoder_for(config).eval()
    parts = [MANY, [2], [9, 4, 30]]
    streams = [stream_of(lengths, seed) for seed, lengths in enumerate(parts)]
    one = join(*streams)
    lengths_of_all = [length for lengths in parts for length in lengths]
    whole = stream_of(lengths_of_all)
    assert one.tokens.dtype == one.cu_seqlens.dtype == one.positions.dtype == torch.int32
    assert torch.equal(one.tokens, torch.cat([s.tokens for s in streams]))
    assert torch.equal(one.cu_seqlens, whole.cu_seqlens)
    assert torch.equal(one.positions, whole.positions)
    together = packed_hidden(encoder, one).split([len(s.tokens) for s in streams])
    for hidden, stream in zip(together, streams, strict=True):
        torch.testing.assert_close(hidden, packed_hidden(encoder, stream), atol=1e-5, rtol=0)
    alone = join(streams[0])
    assert torch.equal(alone.tokens, streams[0].tokens)
    assert torch.equal(alone.cu_seqlens, streams[0].cu_seqlens)


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Sentence vectors [S, H] from padded hidden states [S, L, H]."""
    if pooling == "cls":
        return hidden[:, 0]
    total = (hidden * mask.unsqueeze(-1)).sum(1, dtype=torch.float32)
    return (total / mask.sum(1, keepdim=True)).to(hidden.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pool_packed_equals_pool(pooling: str, dtype: torch.dtype) -> None:
    stream = stream_of(MANY)
    hidden = torch.randn(len(stream.tokens), 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    padded = torch.zeros(len(MANY), max(MANY), 16, dtype=dtype)
    _, mask = stream.padded(pad=0)
    padded[mask] = hidden
    found = pool_packed(hidden.requires_grad_(), stream.cu_seqlens, pooling)
    expected = pool(padded.requires_grad_(), mask, pooling)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]  # another order of additions; one bf16 rounding
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weights = torch.arange(expected.numel(), dtype=torch.float32).view_as(expected).to(dtype) / 100
    (wanted,) = torch.autograd.grad((expected * weights).sum(), padded)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    torch.testing.assert_close(gradient, wanted[mask], atol=tolerance, rtol=tolerance)


def test_pool_packed_sums_in_fp32() -> None:
    hidden = torch.full((1024, 1), 1.0078125, dtype=torch.bfloat16)  # the first bf16 number above 1
    assert pool_packed(hidden, torch.tensor([0, 1024], dtype=torch.int32), "mean").item() == 1.0078125


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=40))
def test_blocks_contain_each_token_once_with_little_padding(lengths: list[int]) -> None:
    stream = stream_of(lengths)
    blocks = Blocks.of(np.array(lengths), torch.device("cpu"))
    sequence = stream.sequence
    held = torch.full((sum(count * width for count, width in blocks.shapes),), -1)
    held[blocks.slots] = torch.arange(len(stream.tokens))
    assert (held >= 0).sum() == len(stream.tokens)  # no two tokens share a row
    seen, first = [], 0
    for (count, width), mask in zip(blocks.shapes, blocks.masks, strict=True):
        rows = held[first : first + count * width].view(count, width)
        first += count * width
        assert torch.equal(mask, (rows >= 0).view(count, 1, 1, width))
        for row in rows:
            tokens = row[row >= 0]
            assert len(set(sequence[tokens].tolist())) == 1
            assert torch.equal(stream.positions[tokens], torch.arange(len(tokens), dtype=torch.int32))
            assert len(tokens) == lengths[int(sequence[tokens[0]])]
            assert width <= 1.2 * len(tokens)
            seen.append(int(sequence[tokens[0]]))
    assert sorted(seen) == list(range(len(lengths)))


def test_invalid_arguments_are_an_error(config: PretrainedConfig) -> None:
    stream = stream_of(MANY)
    with pytest.raises(ValueError, match="encoder: found attention 'sdpa', expected 'ppa_fast_packed'"):
        packed_hidden(encoder_for(config, "sdpa"), stream)
    encoder = encoder_for(config)
    for lengths in (MANY[:-1], [*MANY[:-1], MANY[-1] + 1], [0, MANY[0] + MANY[1], *MANY[2:]], [MANY]):
        with pytest.raises(ValueError, match=f"lengths: expected 10 lengths of at least 1, together {sum(MANY)}"):
            packed_hidden(encoder, dataclasses.replace(stream, lengths=np.array(lengths)))
    with pytest.raises(ValueError, match=r"lengths: found a sequence of 41 tokens; the encoder has (40|38) positions"):
        packed_hidden(encoder, stream_of([3, 41]))
    with pytest.raises(UserError, match="pooling: found 'max', expected one of cls, mean"):
        pool_packed(torch.zeros(3, 4), torch.tensor([0, 3]), "max")


class Calls(TorchDispatchMode):
    """Records the arguments of the flash operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._flash_attention_forward.default:
            self.seen.append((args, kwargs))
        return func(*args, **kwargs or {})


def test_flash_operator_takes_these_arguments_and_has_a_backward() -> None:
    # On the meta device: only shapes are computed.
    parts = [torch.empty(41, 4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    bounds = torch.empty(4, dtype=torch.int32, device="meta")
    with Calls() as calls:
        output = flash_attention(*parts, bounds, 30, 0.1, 0.35)
    ((args, kwargs),) = calls.seen
    assert [x is bounds for x in args[3:5]] == [True, True]
    assert args[5:] == (30, 30, 0.1, False, False)
    assert kwargs == {"scale": 0.35}
    assert output.shape == (41, 4, 8)
    assert all(gradient.shape == (41, 4, 8) for gradient in torch.autograd.grad(output.sum(), parts))


def test_flash_needs_half_precision_on_cuda() -> None:
    assert not has_flash(torch.device("cpu"), torch.bfloat16, 64)
    assert not has_flash(torch.device("cuda"), torch.float32, 64)
    assert not has_flash(torch.device("cuda"), torch.bfloat16, 60)
    assert not has_flash(torch.device("cuda"), torch.bfloat16, 264)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_with_flash_the_encoder_compiles_to_one_graph_for_all_lengths(family: str) -> None:
    # On the meta device. A graph break or a second compilation raises an error.
    encoder = encoder_for(CONFIGS[family], num_hidden_layers=1).bfloat16().to("meta").train()
    torch._dynamo.reset()
    encoder.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens, sequences, longest in ((41, 3, 30), (50, 7, 20), (90, 2, 60)):
            bounds = torch.empty(sequences + 1, dtype=torch.int32, device="meta")
            ids = torch.empty(1, tokens, dtype=torch.int32, device="meta")
            output = encoder(input_ids=ids, position_ids=ids.long(), packing=Packing(bounds, longest, None))
            assert output.last_hidden_state.shape == (1, tokens, 32)
            output.last_hidden_state.sum().backward()


def test_without_flash_compiled_layers_accept_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile(self, backend="eager", **how))
    encoder, compiled = (encoder_for(CONFIGS["bert"], num_hidden_layers=1).eval() for _ in range(2))
    torch._dynamo.reset()
    compile_layers(compiled)
    assert compiled.state_dict().keys() == encoder.state_dict().keys()
    for batch, lengths in enumerate((MANY, [4, 9], [30, 2, 2, 11, 5])):
        stream = stream_of(lengths)
        expected = packed_hidden(encoder, stream)
        with torch._dynamo.config.patch(error_on_recompile=batch > 0):
            torch.testing.assert_close(packed_hidden(compiled, stream), expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_flash_on_a_gpu(dtype: torch.dtype) -> None:
    lengths = [1, 2, 130, 24, 24, 300, 57]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    blocks = Blocks.of(np.array(lengths), torch.device("cuda"))
    torch.manual_seed(0)
    exact = [torch.randn(sum(lengths), 12, 64, device="cuda").double().requires_grad_() for _ in range(3)]
    half = [x.detach().to(dtype).requires_grad_() for x in exact]
    assert has_flash(bounds.device, dtype, 64)
    grad = torch.randn_like(exact[0])
    outputs = [
        block_attention(*exact, blocks, 0.0, 0.125),
        block_attention(*half, blocks, 0.0, 0.125),
        flash_attention(*half, bounds, max(lengths), 0.0, 0.125),
    ]
    inputs = [exact, half, half]
    results = [
        [output, *torch.autograd.grad(output, parts, grad.to(output.dtype))]
        for output, parts in zip(outputs, inputs, strict=True)
    ]
    for wanted, plain, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 3 * (plain - wanted).abs().max() + 1e-5
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(flash_attention(*half, bounds, max(lengths), 0.1, 0.125))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_packed_with_flash_is_as_accurate_as_padded(
    config: PretrainedConfig, dtype: torch.dtype, compiled: bool
) -> None:
    # Heads of width 8, in training mode without dropout: values, and gradients of every weight.
    stream = stream_of(MANY)
    there = PackedSequences(stream.tokens.cuda(), stream.cu_seqlens.cuda(), stream.positions.cuda(), stream.lengths)
    exact, plain = (encoder_for(config, "sdpa", **NO_DROPOUT).train() for _ in range(2))
    ours = encoder_for(config, **NO_DROPOUT).train().to("cuda", dtype)
    if compiled:
        torch._dynamo.reset()
        compile_layers(ours)
    expected = padded_hidden(exact.double(), stream)
    rough, hidden = padded_hidden(plain.to(dtype), stream), packed_hidden(ours, there)
    assert hidden.dtype == dtype
    assert (hidden.cpu() - expected).abs().max() <= 2 * (rough - expected).abs().max() + 1e-5
    wanted, allowed = gradients(exact, expected), gradients(plain, rough)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    (hidden * weights).sum().div(len(hidden)).backward()
    for name, parameter in ours.named_parameters():
        if name in wanted:
            error, other = (x.cpu().double() - wanted[name] for x in (parameter.grad, allowed[name]))
            assert error.abs().max() <= 3 * other.abs().max() + 1e-5, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_packed_forward_never_synchronises(config: PretrainedConfig, dtype: torch.dtype) -> None:
    encoder = encoder_for(config).to("cuda", dtype).train()
    host = stream_of(MANY)
    stream = PackedSequences(host.tokens.cuda(), host.cu_seqlens.cuda(), host.positions.cuda(), host.lengths)
    packed_hidden(encoder, stream).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hidden = packed_hidden(encoder, stream)
        (pool_packed(hidden, stream.cu_seqlens, "mean").sum() + hidden.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = padded_hidden(encoder_for(config, "sdpa").eval(), host)
    found = packed_hidden(encoder.eval(), stream).float().cpu()
    torch.testing.assert_close(found, expected, atol={torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype], rtol=0)
