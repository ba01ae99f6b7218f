"""Every command and all code of README.md and docs/ runs as printed, or is parsed if the block says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, fences, pages
from tests.docs.parsing import parse_block
from tests.docs.scratch import PROGRAMS, run, write_inputs, write_programs

BY_NAME = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]
STRICT = "set -eu -o pipefail\n"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("docs") / "inputs")


def copied(inputs: Path, folder: Path) -> Path:
    return Path(shutil.copytree(inputs, folder, symlinks=True))


@pytest.mark.parametrize("page", BY_NAME)
def test_the_blocks_of_a_page_parse(page: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(inputs, tmp_path / "page")
    monkeypatch.chdir(folder)
    for block in blocks(page):
        parse_block(block, folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", BY_NAME)
def test_the_blocks_of_a_page_run(page: Path, inputs: Path, tmp_path: Path) -> None:
    programs = write_programs(tmp_path / "programs", PROGRAMS)
    folder = copied(inputs, tmp_path / "page")
    for number, block in enumerate(blocks(page)):
        if "parse" in block.words:
            continue
        place = copied(inputs, tmp_path / str(number)) if "fresh" in block.words else folder
        text = STRICT + block.text if block.language == "sh" else block.text
        done = run(block.language, text, place, programs)
        assert done.returncode == 0, f"{block.where}: exit status {done.returncode}\n{done.stdout[-4000:]}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ppa-fast prepare --pairs en-de:train.en,train.de --tokenizer t --out s --max-tokns 9", "--max-tokns"),
        ("ppa-fast prepair --out s", "prepair"),
        ("deepspeed ppa_fast/train.py --deepspeed_config ds_configs/gpu1.json --learningrate 1", "--learningrate"),
        ("deepspeed ppa_fast/train.py --deepspeed_config ds_configs/gpu1.json --momentum 2", "momentum: found 2"),
        ("deepspeed --number 2 ppa_fast/train.py --model m", "--number"),
        ("deepspeed ppa_fast/train.py --deepspeed_config ds_configs/gpu2.json", "gpu2.json is not there"),
        ("srun bash -c 'exec python ppa_fast/train.py --epoch 1'", "--epoch"),
        ("python benchmarks/step.py --device cpu --divice cpu", "--divice"),
        ("python benchmarks/steps2.py", "is not there"),
        ("make demos", "No rule to make target"),
        ("X=1\npa-fast doctor", "no such program: pa-fast doctor"),
        ("for x in 1; do ppa-fast doctor --x$x; done", "--x1"),
        ("for x in 1; do ppa-fast doctor", "syntax error"),
    ],
    ids=lambda value: value.splitlines()[-1][:40],
)
def test_an_unknown_program_flag_or_file_is_found(
    text: str, reason: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(inputs, tmp_path / "page")
    monkeypatch.chdir(folder)
    with pytest.raises(AssertionError, match=rf"page\.md:3: .*({reason})"):
        parse_block(Block("page.md:3", "sh", frozenset({"parse"}), text), folder, monkeypatch)


def test_a_block_with_a_failing_command_fails(inputs: Path, tmp_path: Path) -> None:
    programs = write_programs(tmp_path / "programs", PROGRAMS)
    folder = copied(inputs, tmp_path / "page")
    command = "ppa-fast prepare --pairs en-de:train.en,absent --tokenizer bert-base-multilingual-cased --out store"
    done = run("sh", f"{STRICT}{command}\necho the end", folder, programs)
    assert done.returncode == 2
    assert "absent: no such file" in done.stdout
    assert "the end" not in done.stdout


def test_fenced_blocks_are_found() -> None:
    text = "a\n```sh parse\nb\n```\n\n```\nc\n```\n```python\nd\ne\n```\n"
    assert fences(text, "page.md") == [
        Block("page.md:2", "sh", frozenset({"parse"}), "b\n"),
        Block("page.md:6", "", frozenset(), "c\n"),
        Block("page.md:9", "python", frozenset(), "d\ne\n"),
    ]
    with pytest.raises(AssertionError, match=r"page\.md:1: a fence without its end"):
        fences("```sh\n", "page.md")
