"""Plans: the values that are read, the errors that name a key, and the commands of the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppa_fast.ablation.plan import PAPER, Pretraining, read_plan
from ppa_fast.ablation.stages import seed_stages
from ppa_fast.cli import build_parser
from ppa_fast.errors import UserError
from tests.ablation.plans import write_files, write_plan


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return write_files(tmp_path / "data")


def test_a_plan_is_read(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    data = tmp_path / "data"
    assert plan.seeds == 2
    assert plan.rows == PAPER
    assert isinstance(plan.base, Pretraining)
    assert plan.base.files == [f"{data}/text.en", f"{data}/text.de"]
    assert plan.alignment.pairs == [f"en-de:{data}/text.en,{data}/text.de"]
    assert plan.alignment.launch == ["python"]
    tatoeba, topic, nli, *_ = plan.evaluations
    assert tatoeba.options == {"pooling": "mean"}  # the alignment's
    assert topic.train == [f"en:{data}/topic.en.tsv", f"de:{data}/topic.de.tsv"]
    assert topic.dev == [f"en:{data}/topic.en.tsv"]
    assert (topic.code_switch, nli.code_switch) == (0.5, 0.25)


def test_an_evaluation_can_have_its_own_languages(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values, {"evaluations.xquad.languages": ["en"]}))
    assert [len(evaluation.test) for evaluation in plan.evaluations] == [0, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "plan.yaml: seed: unknown key, expected one of seeds, rows, languages"),
        ({"seeds": 0}, "plan.yaml: seeds: found 0, expected at least 1"),
        ({"seeds": True}, "plan.yaml: seeds: found True, expected a whole number"),
        ({"rows": ["ppa", "mocha"]}, "plan.yaml: rows: found 'mocha', expected distinct rows out of none, tlm, moco"),
        ({"rows": ["ppa", "ppa"]}, "rows: found 'ppa', expected distinct rows"),
        ({"languages": None}, "plan.yaml: languages: found None, expected text or a list of texts"),
        ({"languages": ["german!"]}, "plan.yaml: languages: found 'german!', expected BCP-47 codes"),
        ({"base.model": "mbert"}, "plan.yaml: base.files: found together with model, expected only one"),
        ({"base.files": "absent.{}"}, "base.files: absent.en: no such file"),
        ({"base.init.layer": 3}, "base.init.layer: unknown key, expected one of family, layers"),
        ({"base.init.layers": "three"}, "base.init.layers: found 'three', expected a whole number"),
        ({"base.init.layers": 0}, "base.init.layers: found 0, expected at least 1"),
        ({"base.init.heads": 3}, "base.init.heads: found 3, expected a divisor of hidden,"),
        ({"base.tokenizer.vocab_size": 5}, "base.tokenizer.vocab_size: found 5, expected more than the 5 special"),
        ({"alignment.prepare": {"max_tokens": 0}}, "alignment.prepare.max_tokens: found 0, expected 1 to 32767"),
        ({"base.pretrain.seed": 1}, "base.pretrain.seed: unknown key"),
        ({"alignment": None}, "plan.yaml: alignment.pairs: found neither, expected either pairs or store"),
        ({"alignment.store": "store"}, "alignment.pairs: found both pairs and store, expected either pairs or store"),
        ({"alignment.pairs": "en-{}:absent.{}"}, "alignment.pairs: pairs en-de:absent.de: absent.de: no such file"),
        ({"alignment.settings.moco": False}, "alignment.settings.moco: unknown key"),
        ({"alignment.settings.momentum": 2}, "alignment.settings: momentum: found 2.0, expected 0 to 1"),
        ({"alignment.settings.deepspeed_config": None}, "alignment.settings: deepspeed_config: not given"),
        ({"alignment.settings.deepspeed_config": "absent.json"}, "deepspeed_config: absent.json: no such file"),
        ({"alignment.settings.moco_weight": 0}, "alignment.settings: tlm and moco: found both disabled"),
        ({"evaluations": None}, "plan.yaml: evaluations: found None, expected a mapping"),
        ({"evaluations.topic.task": "topics"}, "evaluations.topic.task: found 'topics', expected one of retrieval"),
        ({"evaluations.topic.epoch": 3}, "evaluations.topic.epoch: unknown key, expected one of task, languages"),
        ({"evaluations.topic.metric": "squad"}, "evaluations.topic.metric: unknown key"),
        ({"evaluations.topic.epochs": 1.5}, "evaluations.topic.epochs: found 1.5, expected a whole number"),
        ({"evaluations.topic.test": None}, "evaluations.topic.test: not given, expected text"),
        ({"evaluations.topic.test": "absent.{}"}, "evaluations.topic.test: en:absent.en: absent.en: no such file"),
        ({"evaluations.nli.code_switch": 0}, "evaluations.nli.code_switch: found 0, expected a share above 0"),
        ({"evaluations.tatoeba.pooling": "max"}, "evaluations.tatoeba.pooling: found 'max', expected one of cls, mean"),
        ({"evaluations.tatoeba.train": "x"}, "evaluations.tatoeba.train: unknown key"),
        ({"evaluations.a b": {"task": "nli"}}, "evaluations: found 'a b', expected a name of letters"),
    ],
)
def test_a_bad_plan_names_the_key(
    changes: dict[str, Any], message: str, values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        read_plan(write_plan(tmp_path / "plan.yaml", values, changes))
    assert message in str(error.value)


def test_an_invalid_plan_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    for name, message in (("list", "expected a mapping"), ("broken", "not YAML"), ("absent", "No such file")):
        with pytest.raises(UserError, match=message) as error:
            read_plan(tmp_path / f"{name}.yaml")
        assert f"{name}.yaml" in str(error.value)


def test_every_stage_is_a_valid_command(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    stages = list(seed_stages(plan, plan.rows, 1, tmp_path / "out"))
    parser = build_parser()
    for stage in stages:
        if stage.words[0] == "ppa-fast":
            parser.parse_args(stage.words[1:])  # exits if the command is invalid
        else:
            assert stage.words[:2] == ("python", stage.words[1])
            assert Path(stage.words[1]).name == "train.py"
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert names[:4] == ["tokenizer", "seed-1/init", "seed-1/base", "store"]
    # Five rows use the encoders of four alignments; retrieval is scored once per encoder.
    assert [name for name in names if name.endswith("/run")] == [
        f"seed-1/{row}/run" for row in ("tlm", "moco", "no-shuffling", "ppa")
    ]
    assert sum(name.endswith("tatoeba") for name in names) == 5
    assert sum(name.endswith(("topic", "nli", "tags", "xquad")) for name in names) == 24


def test_rows_differ_only_in_the_option_that_names_them(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    by_name = {stage.name: stage for stage in seed_stages(plan, plan.rows, 0, tmp_path)}
    switches = {"tlm": {"--no-moco"}, "moco": {"--no-tlm"}, "no-shuffling": {"--no-input-shuffling"}}
    ppa = {word.replace("/ppa/", "/ROW/") for word in by_name["seed-0/ppa/run"].words}
    for row, flags in switches.items():
        words = {word.replace(f"/{row}/", "/ROW/") for word in by_name[f"seed-0/{row}/run"].words}
        assert words - ppa == flags
        assert ppa <= words
    plain, switched = (by_name[f"seed-0/{row}/nli"].words for row in ("ppa", "ppa-switched"))
    assert [(a, b) for a, b in zip(plain, switched, strict=True) if a != b] == [
        (f"{tmp_path}/seed-0/ppa/nli", f"{tmp_path}/seed-0/ppa-switched/nli"),
        ("0", "0.25"),
    ]


def test_the_symmetric_rows_replace_the_contrast_of_the_plan(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    for row, tlm in (("symmetric", True), ("retrieval", False)):
        by_name = {stage.name: stage for stage in seed_stages(plan, (row,), 0, tmp_path)}
        words = " ".join(by_name[f"seed-0/{row}/run"].words)
        for flag in ("contrast=symmetric", "queue-size=0", "projection-dim=0"):
            assert words.count(f"--{flag}") == words.count(f"--{flag.partition('=')[0]}") == 1
        assert ("--no-tlm" in words) != tlm


def test_code_switching_without_alignment_equals_ppa_code_switching_from_the_base(
    values: dict[str, Any], tmp_path: Path
) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    stages = list(seed_stages(plan, ("none", "switched", "ppa-switched"), 0, tmp_path))
    by_name = {stage.name: [*stage.words] for stage in stages}
    assert "seed-0/switched/tatoeba" not in by_name
    for name in ("topic", "nli", "tags", "xquad"):
        words = " ".join(by_name[f"seed-0/ppa-switched/{name}"])
        expected = words.replace("/ppa-switched/", "/switched/").replace("seed-0/ppa/model", "seed-0/base")
        assert " ".join(by_name[f"seed-0/switched/{name}"]) == expected


def test_the_inputs_of_a_stage_come_from_its_command(values: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values))
    stages = list(seed_stages(plan, ("none", "ppa-switched"), 0, tmp_path / "out"))
    reads = {stage.name: {other.name for other in stages if stage.reads(other)} for stage in stages}
    base, model = {"seed-0/base"}, {"seed-0/ppa/model"}
    assert reads == {
        "tokenizer": set(),
        "seed-0/init": {"tokenizer"},
        "seed-0/base": {"seed-0/init"},
        "store": {"tokenizer"},
        "seed-0/ppa/run": base | {"store"},
        "seed-0/ppa/model": {"seed-0/ppa/run"},
        **{f"seed-0/none/{name}": base for name in ("tatoeba", "topic", "nli", "tags", "xquad")},
        **{f"seed-0/ppa-switched/{name}": model for name in ("topic", "nli", "tags", "xquad")},
    }


def test_a_plan_with_a_model_and_a_store_needs_no_base(values: dict[str, Any], tmp_path: Path) -> None:
    changes = {"base": {"model": "mbert"}, "alignment.pairs": None, "alignment.store": "store", "rows": ["none", "tlm"]}
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values, changes))
    stages = list(seed_stages(plan, plan.rows, 0, tmp_path))
    assert stages[0].name == "seed-0/tlm/run"
    assert stages[0].words[2:6] == ("--model", "mbert", "--data", "store")


@pytest.mark.parametrize("name", ["small", "paper"])
def test_the_provided_plans_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files replace the data."""
    source = Path(__file__).resolve().parents[2] / "benchmarks" / "plans" / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").symlink_to(source.parents[2] / "ds_configs")
    while True:  # each error names the missing file
        try:
            plan = read_plan(source)
            break
        except UserError as error:
            path = Path(str(error).removesuffix(": no such file").rsplit(": ", 1)[1])
            assert not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert plan.rows == PAPER
    assert {evaluation.task for evaluation in plan.evaluations} >= {"nli", "qa", "retrieval"}
