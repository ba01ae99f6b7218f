"""Options: one field of a class adds an option everywhere; the flags and arguments of a command are those of
its class."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.settings import (
    AblateSettings,
    AlignmentSettings,
    AnswersSettings,
    ExportSettings,
    FinetuneSettings,
    InitSettings,
    LabelsSettings,
    MiningSettings,
    Options,
    PrepareSettings,
    PretrainSettings,
    ReportSettings,
    RetrievalSettings,
    SampleSettings,
    Settings,
    TagsSettings,
    TokenizerSettings,
    add_arguments,
    from_arguments,
    given,
    read_yaml,
    takes,
    to_flags,
    write_yaml,
)
from ppa_fast.settings.options import REQUIRED, at_least, option, parts

COMMANDS = {
    "sample": (SampleSettings, "ppa_fast.sample.corpus.write_sample"),
    "tokenizer": (TokenizerSettings, "ppa_fast.data.store.wordpiece.train_wordpiece"),
    "prepare": (PrepareSettings, "ppa_fast.data.store.prepare.prepare"),
    "init": (InitSettings, "ppa_fast.model.initialise.init_model"),
    "export": (ExportSettings, "ppa_fast.training.export.export"),
    "report": (ReportSettings, "ppa_fast.reporting.page.report"),
    "ablate": (AblateSettings, "ppa_fast.ablation.runner.ablate"),
    "finetune": (FinetuneSettings, "ppa_fast.tasks.finetuning.finetune"),
    "pretrain": (PretrainSettings, "ppa_fast.tasks.pretrain.pretrain"),
    "evaluate retrieval": (RetrievalSettings, "ppa_fast.tasks.retrieval.evaluate_retrieval"),
    "evaluate qa": (AnswersSettings, "ppa_fast.tasks.question_answering.evaluate_qa"),
    "evaluate nli": (LabelsSettings, "ppa_fast.tasks.nli.evaluate_nli"),
    "evaluate classify": (LabelsSettings, "ppa_fast.tasks.classification.evaluate_classification"),
    "evaluate tagging": (TagsSettings, "ppa_fast.tasks.tagging.evaluate_tagging"),
    "evaluate align": (AlignmentSettings, "ppa_fast.tasks.word_alignment.evaluate_alignment"),
    "evaluate mine": (MiningSettings, "ppa_fast.tasks.mining.evaluate_mining"),
}


@dataclass(frozen=True)
class Extended(Settings):
    """The training settings with one more field."""

    added_option: int = option(3, "an option that was added", at_least(1))


@dataclass(frozen=True)
class Several(Options):
    """Every kind of option that a command has."""

    EXCLUSIVE: ClassVar = (("model", "predictions"),)

    gold: list[str] = option(REQUIRED, "files", positional=True)
    train: list[str] = option(REQUIRED, "files by language", metavar="LANG:FILE")
    multi: list[list[str]] = option([], "groups of files")
    model: str | None = option(None, "a model")
    predictions: list[str | Path] | None = option(None, "files")
    columns: tuple[str, str] | None = option(None, "two names")
    layer: int | None = option(None, "100 % of the layers", at_least(0))
    share: float = option(0.5, "a share")
    kind: str = option("one", "which", choices=("one", "two"))
    one_indexed: bool = option(False, "words count from 1")


def parser_of(cls: type[Options]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser, cls)
    return parser


def parse(cls: type[Options], *words: str) -> Options:
    return from_arguments(cls, parser_of(cls).parse_args(words))


def test_an_added_field_is_a_flag_a_key_of_the_file_and_an_argument(tmp_path: Path) -> None:
    assert "--added-option ADDED_OPTION" in parser_of(Extended).format_help()
    assert "an option that was added (default 3)" in parser_of(Extended).format_help()
    assert parse(Extended).added_option == 3
    assert parse(Extended, "--added-option", "5") == parse(Extended, "--added_option=5") == Extended(added_option=5)
    assert to_flags(given(Extended, parser_of(Extended).parse_args(["--added-option", "5"]))) == ["--added-option=5"]

    file = tmp_path / "settings.yaml"
    write_yaml(Extended(added_option=7), file, store={"path": "store"})
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["added_option"] == 7
    assert read_yaml(Extended, file)["added_option"] == 7
    assert parse(Extended, "--settings", str(file)) == Extended(added_option=7)
    with pytest.raises(UserError, match="unknown names added_option"):
        read_yaml(Settings, file)

    function = takes(Extended)(lambda settings: settings.added_option)
    assert inspect.signature(function).parameters["added_option"].default == 3
    assert (function(), function(added_option="9")) == (3, 9)
    with pytest.raises(UserError, match=r"^added_option: found 0, expected at least 1"):
        function(added_option=0)


@pytest.mark.parametrize("verb", COMMANDS)
def test_flags_and_arguments_of_a_command_equal_the_fields_of_its_class(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cls, path = COMMANDS[verb]
    module, _, name = path.rpartition(".")
    function = inspect.signature(getattr(importlib.import_module(module), name))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    assert [*function.parameters] == [*fields]

    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    shown = capsys.readouterr().out.partition("\nexample")[0]
    flat = [f for each in (cls, *parts(cls).values()) for f in dataclasses.fields(each) if f.name not in parts(cls)]
    flags = {f"--{f.name.replace('_', '-')}" for f in flat if not f.metadata["positional"]}
    usage = shown.partition("\n\n")[0]
    assert set(re.findall(r"--[a-z-]+", usage)) == flags | {"--quiet", "--debug"}
    for f in flat:
        assert len(f.metadata["help"]) > 3, f.name
        assert "".join(f.metadata["help"].split()) in "".join(shown.split())


def test_every_kind_of_option_is_parsed() -> None:
    words = "g h --train en:a de:b --train fr:c --multi a b --multi c --predictions p --columns x,y --layer 2"
    assert parse(Several, *words.split(), "--share=1e-1", "--kind", "two", "--one-indexed") == Several(
        gold=["g", "h"],
        train=["en:a", "de:b", "fr:c"],
        multi=[["a", "b"], ["c"]],
        predictions=[Path("p")],
        columns=("x", "y"),
        layer=2,
        share=0.1,
        kind="two",
        one_indexed=True,
    )
    assert parse(Several, "g", "--train", "t") == Several(["g"], ["t"])
    assert "100 % of the layers" in parser_of(Several).format_help()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "m", "predictions": ["p"]},
            r"^model and predictions: found both \(m and .*\), expected one",
        ),
        ({"columns": "x"}, "^columns: found 'x', expected two names, A,B"),
        ({"columns": "x,"}, "^columns: found 'x,', expected two names, A,B"),
        ({"columns": ("x", "y", "z")}, "^columns: found .*, expected two names, A,B"),
        ({"multi": ["a"]}, r"^multi: found \['a'\], expected list"),
        ({"train": "en:a"}, "^train: found 'en:a', expected a list of texts"),
        ({"train": None}, "^train: found None, expected a list of texts"),
        ({"layer": True}, "^layer: found True, expected a whole number"),
        ({"layer": -1}, "^layer: found -1, expected at least 0"),
        ({"share": "nan"}, "^share: found 'nan', expected a number"),
        ({"kind": "three"}, "^kind: found 'three', expected one of one, two"),
        ({"one_indexed": 1}, "^one_indexed: found 1, expected true or false"),
    ],
)
def test_an_invalid_value_is_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Several(**{"gold": ["g"], "train": ["t"], **change})


@dataclass(frozen=True)
class Bound(Options):
    """Options of which one must be given, and one that needs another."""

    ONE_OF: ClassVar = (("model", "links"),)
    NEEDS: ClassVar = {"out": "model"}

    model: str | None = option(None, "a model")
    links: list[str] = option([], "files")
    out: str | None = option(None, "a file")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^model and links: found neither, expected one of them"),
        ({"model": "m", "links": ["a"]}, r"^model and links: found both \(m and \['a'\]\), expected one of them"),
        ({"links": ["a"], "out": "o"}, "^out: found o without model, expected both"),
        ({"model": "m", "out": "o"}, None),
        ({"model": "m", "links": []}, None),
    ],
)
def test_exclusive_and_dependent_options_are_checked(values: dict, message: str | None) -> None:
    if message is None:
        assert Bound(**values).model == "m"
        return
    with pytest.raises(UserError, match=message):
        Bound(**values)


@pytest.mark.parametrize("words", [["--train", "t"], ["g"], ["g", "--train", "t", "--kind", "three"]])
def test_an_invalid_command_line_exits(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Several, *words)
