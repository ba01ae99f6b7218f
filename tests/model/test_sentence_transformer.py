"""The files of sentence-transformers: reading, keeping them in a run, writing."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.errors import UserError
from ppa_fast.model.sentence_transformer import SentenceModules, stated_pooling


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_the_stated_pooling_is_read(tmp_path: Path, config: dict, expected: str) -> None:
    assert stated_pooling(str(tmp_path)) is None
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert stated_pooling(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "config",
    [{"pooling_mode_max_tokens": True}, {"pooling_mode": ["cls", "mean"]}, {"pooling_mode_mean_sqrt_len_tokens": True}],
)
def test_an_unsupported_pooling_is_an_error(tmp_path: Path, config: dict) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"found pooling .*, expected one of cls, mean; set --pooling"):
        stated_pooling(str(tmp_path))


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(json.dumps(content))


def test_a_folder_without_the_files_has_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"model_max_length": 512})
    assert SentenceModules.of(str(tmp_path)) == SentenceModules.kept(tmp_path) == SentenceModules()


@pytest.mark.parametrize("version", [2, 6])
def test_modules_are_restored_from_a_run_and_from_an_export(tmp_path: Path, version: int) -> None:
    package = "sentence_transformers.models" if version == 2 else "sentence_transformers.base.modules.some"
    names = {"Transformer": "", "Pooling": "2_Pooling", "Dense": "3_Dense", "Normalize": "4_Normalize"}
    write(tmp_path / "base", "modules.json", [{"path": path, "type": f"{package}.{n}"} for n, path in names.items()])
    write(tmp_path / "base", "2_Pooling/config.json", {"pooling_mode_mean_tokens": True, "include_prompt": False})
    write(tmp_path / "base", "tokenizer_config.json", {"model_max_length": 77 if version == 6 else 512})
    stated = {"transformer_task": "x"} if version == 6 else {"max_seq_length": 77, "do_lower_case": True}
    write(tmp_path / "base", "sentence_bert_config.json", stated)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    write(tmp_path / "base", "config_sentence_transformers.json", {**prompts, "__version__": {"pytorch": "1"}})

    modules = SentenceModules.of(str(tmp_path / "base"))
    assert stated_pooling(str(tmp_path / "base")) == "mean"
    assert modules == SentenceModules(True, ["Dense"], 77, version == 2, False, prompts)
    modules.keep(tmp_path)
    assert SentenceModules.kept(tmp_path) == modules
    (tmp_path / "out").mkdir()
    modules.write(tmp_path / "out", 32, "cls", 77)
    assert SentenceModules.of(str(tmp_path / "out")) == SentenceModules(True, [], 77, version == 2, False, prompts)
    assert stated_pooling(str(tmp_path / "out")) == "cls"
