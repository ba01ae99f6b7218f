"""Straight from text: the pairs of the text once a pass, shard by shard, wherever one begins to read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ppa_fast.data.batch import micro_batches
from ppa_fast.data.corpus import sentence_group
from ppa_fast.data.encode import load_tokenizer
from ppa_fast.data.pack import packer_for
from ppa_fast.data.sampler import Sampler
from ppa_fast.data.spool import read_journal
from ppa_fast.data.store import Store
from ppa_fast.data.stream import Stream, StreamSampler, is_text
from ppa_fast.data.table import ROW_BITS
from ppa_fast.errors import UserError

DRAWS = {"seed": 5, "mask_probability": 0.2, "input_shuffling": True}


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(str(tiny.tokenizer))


@pytest.fixture
def opened(tokenizer, tmp_path):
    """Opens streams whose shards are made in this process; closes them."""
    streams = []

    def open_stream(specs, shard, position=0, anew=True, held=10**9, run=tmp_path / "run"):
        stream = Stream(specs, tokenizer, 30, shard, run, held)
        stream.spool.start(stream.maker, position, anew)
        streams.append(stream)
        return stream

    yield open_stream
    for stream in streams:
        stream.spool.close()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A process of its own is what ``tests/training/test_stream.py`` has; here it would be most of the time."""

    class Here:
        def __init__(self, function):
            self.function = function

        def __call__(self, item):
            return self.function(item)

        def kill(self):
            pass

    monkeypatch.setattr("ppa_fast.data.spool.Worker", Here)


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read(stream, positions):
    """Pair ids, epochs and groups at these positions, as sampler and packer give them."""
    rows, epochs = StreamSampler(stream.spool, 1, 5).at(np.asarray(positions))
    (batch,) = micro_batches(stream.packer(**DRAWS), rows, epochs, 1)
    ids, groups = np.empty_like(rows), np.empty_like(rows)
    ids[batch.positions], groups[batch.positions] = batch.pair_ids, batch.groups
    assert stream.pair_ids(rows).tolist() == ids.tolist()
    return ids, epochs, groups


def test_what_is_text(tmp_path):
    assert is_text(["en-de:a,b", "fr-en:c.tsv"])
    assert not is_text(["store", "/a/b-c:d", "stores/en-de"])
    (tmp_path / "en-de:a").mkdir()
    assert not is_text([str(tmp_path / "en-de:a")])
    with pytest.raises(UserError, match="data: found the text en-de:a,b and the store here"):
        is_text(["here", "en-de:a,b"])


def test_one_shard_is_a_store_bit_for_bit(tiny, tmp_path, opened, tokenizer):
    """Pair ids, order, coins and masks over three passes, in steps that span two of them."""
    from ppa_fast.data.prepare import prepare

    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "store", max_tokens=30)
    store, stream = Store.open(tmp_path / "store"), opened(tiny.pairs[:1], 1000)
    sampler, streamed = Sampler(150, 64, 5), StreamSampler(stream.spool, 64, 5)
    packers = packer_for(store, **DRAWS), stream.packer(**DRAWS)
    assert streamed.head() == 150
    for step in (0, 1, 2, 6, 3):
        batches = [
            list(micro_batches(packer, *each.draw(step), 4))
            for packer, each in zip(packers, (sampler, streamed), strict=True)
        ]
        for mine, theirs in zip(*batches, strict=True):
            assert mine.buffer.tolist() == theirs.buffer.tolist()


@pytest.mark.parametrize("shard", [7, 50, 149, 150, 151])
def test_every_pass_has_every_pair_once_and_shards_are_consecutive(tiny, opened, shard):
    stream = opened(tiny.pairs[:1], shard)
    ids, epochs, _ = read(stream, range(450))
    assert epochs.tolist() == sorted(epochs.tolist())
    for epoch in range(3):
        mine = ids[epochs == epoch]
        assert sorted(mine.tolist()) == list(range(150))
        for begin in range(0, 150, shard):
            assert sorted(mine[begin : begin + shard]) == list(range(begin, min(begin + shard, 150)))
    first, second = ids[:shard], ids[150 : 150 + shard]
    assert first.tolist() != second.tolist()  # another order in each pass
    assert first.tolist() != sorted(first.tolist())


def test_any_position_is_read_alike_whatever_was_read_before(tiny, tmp_path, opened):
    """As a run that goes on does, with the journal and without it."""
    expected = read(opened(tiny.pairs, 40), range(700))
    for number, (position, keep) in enumerate([(0, True), (333, True), (310, False), (650, True)]):
        run = tmp_path / "run"
        stream = opened(tiny.pairs, 40, position, anew=not keep)
        found = read(stream, range(position, 700))
        for one, other in zip(found, expected, strict=True):
            assert one.tolist() == other[position:].tolist(), number
        stream.spool.close()
        assert not list(run.glob("stream/shard-*"))
        with (run / "stream" / "shards.jsonl").open("a") as file:
            file.write('{"epoch": 7, "numb')  # as a kill leaves it


def test_sources_take_turns_so_that_all_end_together(tmp_path, opened, monkeypatch):
    """90,000 and 10,000 lines, the smaller ones' file packed: each shard has about nine of one and one of the other."""
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("a", 90_000), ("b", 10_000)):
        texts = [" ".join(rng.choice(["kalo", "mine", "pulo", "neka"], 6)) + f" {i}" for i in range(count)]
        files[name] = lines(tmp_path / f"{name}.tsv", [f"{text}\tx {text}" for text in texts])
    packed = tmp_path / "b.tsv.gz"
    packed.write_bytes(gzip.compress(files["b"].read_bytes()))
    monkeypatch.setattr("ppa_fast.data.prepare.CHUNK_RECORDS", 500)
    stream = opened([f"en-de:{files['a']}", f"en-fr:{packed}"], 10_000)
    read(stream, [99_999])
    shards = read_journal(tmp_path / "run" / "stream")[:10]
    assert sum(shard.pairs for shard in shards) == 100_000
    taken = np.diff([(0, 0), *(shard.records for shard in shards)], axis=0)
    # A packed file is read by blocks of 128 KiB on the disk, each of which is a few thousand lines.
    assert (taken[:9, 1] < 5_000).all()
    assert (taken[:5, 1].sum(), taken[5:, 1].sum()) > (2_500, 2_500)


def test_bad_lines_are_listed_once_and_counted_in_no_pair_id(tmp_path, opened):
    text = lines(
        tmp_path / "t.tsv", ["kalo\tmine", "no tab", "pulo\tneka", "\tempty", "\u200b\tno tokens", "mine\tkalo"]
    )
    stream = opened([f"en-de:{text}"], 2)
    ids, epochs, groups = read(stream, range(9))
    assert [sorted(ids[epochs == epoch]) for epoch in range(3)] == [[0, 2, 5]] * 3
    assert {ids[i]: groups[i] for i in range(9)} == {
        0: sentence_group("kalo"), 2: sentence_group("pulo"), 5: sentence_group("mine"),
    }  # fmt: skip
    stream.spool.close()
    listed = [f"{text}:2: missing tab", f"{text}:4: empty side", f"{text}:5: no tokens"]
    assert (tmp_path / "run" / "rejected.tsv").read_text().splitlines() == listed
    for position in (0, 1, 2, 5):  # from every shard of the first pass, and from one of the second
        again = opened([f"en-de:{text}"], 2, position=position, anew=False)
        found = read(again, range(position, 9))
        assert [each.tolist() for each in found] == [each[position:].tolist() for each in (ids, epochs, groups)]
        again.spool.close()
        assert (tmp_path / "run" / "rejected.tsv").read_text().splitlines() == listed


def test_going_on_before_lines_that_were_listed_already(tmp_path, opened):
    """The shard that is made again lists nothing; the one behind it did."""
    text = lines(tmp_path / "t.tsv", ["kalo\tmine", "pulo\tneka", "no tab", "mine\tkalo"])
    opened([f"en-de:{text}"], 2).spool.shard(2)
    again = opened([f"en-de:{text}"], 2, position=0, anew=False)
    assert sorted(read(again, range(3))[0].tolist()) == [0, 1, 3]


def test_files_have_pair_ids_of_their_own(tiny, opened):
    ids, _, _ = read(opened(tiny.pairs, 100), range(300))
    assert sorted(ids.tolist()) == [*range(150), *range(1 << ROW_BITS, (1 << ROW_BITS) + 150)]


def test_shards_are_removed_behind_what_is_held(tiny, tmp_path, opened):
    stream = opened(tiny.pairs[:1], 10, held=25)
    for position in range(0, 300, 5):
        read(stream, range(position, position + 5))
        kept = sorted(int(path.stem[6:]) for path in (tmp_path / "run" / "stream").glob("shard-*.arrow"))
        assert kept[0] == max(0, (position - 25) // 10)
        assert kept[-1] <= position // 10 + 1  # no more than one ahead


def test_text_that_cannot_be_streamed(tmp_path, tiny, opened, tokenizer):
    for content, message in (("no tab\n", "no usable pair in .*t.tsv; see .*rejected.tsv"), ("", "no usable pair")):
        text = tmp_path / "t.tsv"
        text.write_text(content)
        with pytest.raises(UserError, match=f"^data: {message}"):
            read(opened([f"en-de:{text}"], 4), [0])
    lines(tmp_path / "a", ["kalo", "mine", "pulo"])
    lines(tmp_path / "b", ["kalo", "mine"])
    with pytest.raises(UserError, match="files of unequal length"):
        read(opened([f"en-de:{tmp_path}/a,{tmp_path}/b"], 2), range(4))
    with pytest.raises(UserError, match="size is not known"):
        Stream([*tiny.pairs, "en-de:hf:some/name"], tokenizer, 30, 10, tmp_path / "run", 1)


def test_text_that_changed_under_a_run(tmp_path, opened):
    text = lines(tmp_path / "t.tsv", ["kalo\tmine", "pulo\tneka", "mine\tkalo", "neka\tpulo"])
    read(opened([f"en-de:{text}"], 2), range(4))
    lines(text, ["kalo\tmine", "pulo\tneka", "no tab", "neka\tpulo"])
    with pytest.raises(UserError, match="shard 1 of the text has 1 pairs, not as before 2: the text has changed"):
        read(opened([f"en-de:{text}"], 2, position=2, anew=False), [3])


def test_the_fingerprint_names_the_text_and_how_it_is_cut(tiny, tokenizer, tmp_path):
    def fingerprint(specs, max_tokens=30, shard=10):
        return Stream(specs, tokenizer, max_tokens, shard, tmp_path, 1).fingerprint

    one = fingerprint(tiny.pairs)
    others = [fingerprint(tiny.pairs[::-1]), fingerprint(tiny.pairs[:1])]
    others += [fingerprint(tiny.pairs, max_tokens=20), fingerprint(tiny.pairs, shard=11)]
    assert len({one, *others}) == 5
    assert fingerprint(tiny.pairs) == one
