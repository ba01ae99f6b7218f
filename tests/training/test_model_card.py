"""The model card: the front matter that the Hub reads, and facts of the run."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from ppa_fast.settings import Settings
from ppa_fast.training.model_card import model_card

SETTINGS = {
    "model": "google-bert/bert-base-multilingual-cased",
    "data": "/somewhere/store",
    "pooling": "mean",
    "learning_rate": 1e-4,
    "temperature": 0.05,
    "steps": None,
    "a_new_setting": "one | two",
    "log_every": 1,
    "store": {"pairs": {"en-de": 1200, "en-zh_Hant": 800}, "languages": ["de", "en", "zh_Hant"], "batch": 64},
}


def scores(a_to_b: float, b_to_a: float, name: str = "en-de") -> dict[str, Any]:
    return {name: {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": 1500, "alignment": 0.1, "uniformity": -3.0}}


def evaluation(step: int, pairs: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "pairs": pairs, "mean": 0.5}


def card(evaluations: list[dict[str, Any]], step: int = 100, **settings: Any) -> ModelCard:
    return ModelCard(model_card({**SETTINGS, **settings}, evaluations, step, "bert", 128, has_head=True))


def rows(made: ModelCard, section: str) -> list[str]:
    """Returns the rows of the table in a section, without its header."""
    text = made.text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_the_front_matter_is_valid():
    data = card([]).data
    assert data.language == ["multilingual", "de", "en", "zh"]
    assert data.language_bcp47 == ["zh-Hant"]
    assert data.base_model == "google-bert/bert-base-multilingual-cased"
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert data.eval_results is None


def test_the_licence_is_a_visible_placeholder():
    made = card([])
    assert made.data.license is None
    assert "Fill in `license:`" in made.text
    assert model_card(SETTINGS, [], 100, "bert", 128, has_head=True).startswith("---\n# license: to be filled in")


@pytest.mark.parametrize("model", ["./model", "/home/me/model", "~/model", "a/b/c"])
def test_a_local_base_folder_is_not_named_as_base_model(model):
    made = card([], model=model)
    assert made.data.base_model is None
    assert f"`{model.rpartition('/')[2]}`" in made.text
    assert model not in made.content.replace("https://", "")


def test_the_data_section_lists_language_pairs():
    made = card([])
    assert rows(made, "Data") == ["| en-de | 1,200 |", "| en-zh_Hant | 800 |", "| all | 2,000 |"]
    assert "100 steps of 64 pairs, 3.2 passes" in made.text
    assert "did not record its language pairs" in card([], store={}).text


def test_the_settings_section_lists_changed_settings():
    assert rows(card([]), "Settings") == ["| learning_rate | 0.0001 |", "| a_new_setting | one \\| two |"]
    plain = card([], learning_rate=Settings().learning_rate, a_new_setting=None)
    assert rows(plain, "Settings") == []
    assert "All settings are the defaults of ppa-fast" in plain.text


def test_scores_before_and_after_are_listed():
    made = card([evaluation(0, scores(0.1, 0.05)), evaluation(50, scores(0.7, 0.6)), evaluation(100, scores(0.8, 0.4))])
    expected = ["| en → de | 1,500 | 10.0 | 80.0 |", "| de → en | 1,500 | 5.0 | 40.0 |", "| mean |  | 7.5 | 60.0 |"]
    assert rows(made, "Scores") == expected
    assert "before training and at step 100" in made.text
    found = {result.metric_type: result.metric_value for result in made.data.eval_results}
    assert found == {"src2trg_accuracy": 0.8, "trg2src_accuracy": 0.4}


def test_scores_of_another_step_are_marked_and_not_in_the_model_index():
    made = card([evaluation(0, scores(0.1, 0.05)), evaluation(50, scores(0.7, 0.6)), evaluation(200, scores(0.9, 0.9))])
    assert "before training and at step 50" in made.text
    assert rows(made, "Scores")[0] == "| en → de | 1,500 | 10.0 | 70.0 |"
    assert made.data.eval_results is None


def test_a_pair_that_was_not_evaluated_at_step_0_has_no_score_before():
    both = {**scores(0.8, 0.4), **scores(0.5, 0.5, "en-fr")}
    made = card([evaluation(0, scores(0.1, 0.05)), evaluation(100, both)])
    assert rows(made, "Scores")[2] == "| en → fr | 1,500 | – | 50.0 |"
    assert rows(made, "Scores")[4] == "| mean |  | – | 55.0 |"
    made = card([evaluation(100, scores(0.8, 0.4))])
    assert rows(made, "Scores")[0] == "| en → de | 1,500 | – | 80.0 |"
    assert "before training" not in made.text.split("## Scores")[1].split("## Settings")[0]


def test_a_run_without_evaluation_has_a_note():
    assert "The run was not evaluated." in card([]).text
    assert "The run was not evaluated." in card([evaluation(200, scores(0.8, 0.4))]).text
