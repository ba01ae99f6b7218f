"""The training settings: values, flags, YAML, and the settings.yaml of a run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import yaml

from ppa_fast.errors import UserError
from ppa_fast.settings import Settings, add_arguments, from_arguments, read_yaml, write_yaml
from ppa_fast.settings.train import RECIPES

FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
FLOATS = [name for name, f in FIELDS.items() if f.type in ("float", "float | None")]
INTEGERS = [name for name, f in FIELDS.items() if f.type in ("int", "int | None")]
SWITCHES = [name for name, f in FIELDS.items() if f.type == "bool"]
POSITIVE = ["learning_rate", "temperature", "adam_epsilon"]
POSITIVE += ["log_every", "eval_every", "save_every", "keep", "steps", "epochs", "sampling_cap"]
SHARES = ["mask_probability", "sampling_alpha", "warmup", "momentum", "momentum_warmup", "adam_beta1", "adam_beta2"]


def parse(*flags: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser, Settings)
    return from_arguments(Settings, parser.parse_args(flags))


def write(folder: Path, content: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


# One definition.


def test_the_defaults_equal_those_of_the_method():
    settings = Settings()
    assert (settings.queue_size, settings.momentum, settings.temperature) == (32768, 0.999, 0.05)
    assert (settings.projection_dim, settings.tlm_weight, settings.moco_weight) == (128, 1.0, 1.0)
    assert (settings.mask_probability, settings.pooling, settings.queue_warmup) == (0.15, None, "encode")
    assert (settings.learning_rate, settings.weight_decay, settings.warmup) == (3e-5, 0.01, 0.06)
    assert settings.tlm
    assert settings.moco
    assert settings.input_shuffling


def test_every_field_has_help_and_a_flag():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Settings)
    text = "".join(parser.format_help().split())  # formats every help text; an unescaped % would raise an error
    for name, field in FIELDS.items():
        assert len(field.metadata["help"]) > 5, name
        assert "".join(field.metadata["help"].split()) in text
        assert f"--{name.replace('_', '-')}" in text
        assert f"--{name}" in text
    assert "keysinthequeue(default32768)" in text


def test_instances_do_not_share_lists():
    one = Settings()
    one.eval_pairs.append("en-de:a,b")
    assert Settings().eval_pairs == []


# Recipes.


def test_the_recipe_of_the_paper_equals_the_defaults():
    assert Settings(recipe="paper") == dataclasses.replace(Settings(), recipe="paper")


def test_a_recipe_sets_values_that_are_not_given():
    chosen = Settings(recipe="retrieval")
    assert (chosen.contrast, chosen.queue_size, chosen.projection_dim, chosen.tlm) == ("symmetric", 0, 0, False)
    over = parse("--recipe", "retrieval", "--tlm", "--temperature", "0.1")
    assert (over.tlm, over.temperature, over.contrast) == (True, 0.1, "symmetric")
    # A given value also takes precedence if it equals the default of the other recipe.
    assert Settings(recipe="retrieval", projection_dim=128).projection_dim == 128
    assert dataclasses.replace(over, steps=5) == Settings(recipe="retrieval", tlm=True, temperature=0.1, steps=5)


def test_a_recipe_that_is_chosen_later_sets_what_was_not_given():
    settings = Settings("m", temperature=0.1, tlm=True)
    assert settings.replaced(steps=5) == Settings("m", temperature=0.1, tlm=True, steps=5)
    later = settings.replaced(steps=5).replaced(recipe="retrieval")
    assert later == Settings("m", temperature=0.1, tlm=True, steps=5, recipe="retrieval")
    assert (later.contrast, later.tlm) == ("symmetric", True)


def test_every_value_of_a_recipe_is_valid():
    for values in RECIPES.values():
        assert Settings(**values) == dataclasses.replace(Settings(), **values)
        assert values.keys() <= FIELDS.keys() - {"recipe"}


def test_the_effective_values_of_a_recipe_are_saved(tmp_path):
    path = tmp_path / "settings.yaml"
    settings = Settings(recipe="retrieval", pooling="cls")
    write_yaml(settings, path)
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (saved["recipe"], saved["contrast"], saved["pooling"]) == ("retrieval", "symmetric", "cls")
    assert parse("--settings", str(path)) == settings
    assert parse("--settings", str(path), "--recipe", "paper").contrast == "symmetric"  # as in the file
    path.write_text("recipe: retrieval\ntemperature: 0.02\n")
    assert parse("--settings", str(path)) == Settings(recipe="retrieval", temperature=0.02)


def test_an_unknown_recipe_is_an_error():
    with pytest.raises(UserError, match=r"^recipe: found 'fast', expected one of paper, retrieval"):
        Settings(recipe="fast")


# Flags and YAML.


def test_flags_set_values():
    settings = parse("--model", "m", "--steps", "5", "--learning-rate", "1e-4", "--no-tlm", "--pooling", "mean")
    assert (settings.model, settings.steps, settings.learning_rate) == ("m", 5, 1e-4)
    assert (settings.tlm, settings.moco, settings.pooling) == (False, True, "mean")
    assert settings == Settings(model="m", steps=5, learning_rate=1e-4, tlm=False, pooling="mean")
    assert parse("--queue_size", "7", "--no-input_shuffling") == Settings(queue_size=7, input_shuffling=False)
    assert parse("--eval-pairs", "en-de:a,b", "en-fr:c", "--eval-pairs", "en-hi:d").eval_pairs == [
        "en-de:a,b",
        "en-fr:c",
        "en-hi:d",
    ]


def test_flags_override_yaml(tmp_path):
    file = write(
        tmp_path,
        "model: base\nlearning_rate: 3e-4\nweight_decay: 0\nmoco: no\nqueue_size: 64\neval_pairs: [en-de:a.tsv]\n",
    )
    assert parse("--settings", file) == Settings(
        model="base", learning_rate=3e-4, weight_decay=0.0, moco=False, queue_size=64, eval_pairs=["en-de:a.tsv"]
    )
    over = parse("--queue-size", "8", "--settings", file, "--moco", "--eval-pairs", "en-fr:b.tsv")
    assert (over.queue_size, over.moco, over.eval_pairs) == (8, True, ["en-fr:b.tsv"])
    assert (over.model, over.learning_rate) == ("base", 3e-4)


def test_a_flag_for_steps_or_epochs_replaces_the_other_one_of_the_file(tmp_path):
    file = write(tmp_path, "epochs: 3\n")
    settings = parse("--settings", file, "--steps", "10")
    assert (settings.steps, settings.epochs) == (10, None)
    file = write(tmp_path, "steps: 10\n")
    settings = parse("--settings", file, "--epochs", "0.5")
    assert (settings.steps, settings.epochs) == (None, 0.5)


def test_steps_and_epochs_together_are_an_error(tmp_path):
    with pytest.raises(UserError, match="steps and epochs: found both"):
        parse("--steps", "3", "--epochs", "1")
    with pytest.raises(UserError, match="steps and epochs: found both"):
        parse("--settings", write(tmp_path, "steps: 3\nepochs: 1\n"))


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert parse("--settings", write(tmp_path, "# nothing yet\n")) == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1\nwarm: 2\n", "found unknown names learning_rat, warm, expected model, "),
        ("optimizer:\n  lr: 1\n", "found unknown names optimizer"),
        ("1: 2\n", "found unknown names 1"),
        ("- steps\n- 3\n", "found list, expected a mapping"),
        ("steps\n", "found str, expected a mapping"),
        ("steps: [1\n", "not YAML"),
        ("a: b: c\n", "not YAML"),
        ("steps: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("steps: 2021-13-45\n", "not YAML"),
        ("model: \0\n", "not YAML"),
        ("? [1, 2]\n: 3\n", "not YAML"),
    ],
)
def test_an_invalid_settings_file_is_an_error(tmp_path, content, message):
    file = write(tmp_path, content)
    with pytest.raises(UserError, match=rf"^settings: .*mine\.yaml: {message}"):
        read_yaml(Settings, file)


def test_an_unreadable_settings_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^settings: .*absent\.yaml: No such file"):
        parse("--settings", str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match=r"^settings: .*: Is a directory"):
        parse("--settings", str(tmp_path))
    (tmp_path / "latin").write_bytes(b"model: Stra\xdfe\n")
    with pytest.raises(UserError, match="latin: not YAML"):
        parse("--settings", str(tmp_path / "latin"))


# Values.


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", float("nan"), float("inf"), "", "much", True, [1.0], {}])
def test_a_number_is_a_finite_number(name, value):
    with pytest.raises(UserError, match=f"^{name}: found .*, expected a number"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", ["nan", float("inf"), 2.5, "2.5", "1e3", "", False, [1], {}])
def test_a_count_is_a_whole_number(name, value):
    with pytest.raises(UserError, match=f"^{name}: found .*, expected a whole number"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["true", "no", 1, 0, None, []])
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(UserError, match=f"^{name}: found .*, expected true or false"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", ["en-de:a,b", None, 3, {"en-de": "a,b"}, [{"en-de": "a,b"}], [1], [None]])
def test_pairs_are_a_list_of_strings(value):
    with pytest.raises(UserError, match=r"^eval_pairs: found .*, expected a list of texts"):
        Settings(eval_pairs=value)


def test_a_single_store_needs_no_list(tmp_path):
    assert Settings(data="store").data == Settings(data=Path("store")).data == ["store"]
    assert Settings(data="").data == Settings().data == []
    assert parse("--settings", write(tmp_path, "data: store\n")).data == ["store"]
    assert parse("--settings", write(tmp_path, "data: [one, two]\n")).data == ["one", "two"]
    assert parse("--data", "one", "two", "--data", "three").data == ["one", "two", "three"]
    with pytest.raises(UserError, match=r"^data: found 3, expected a list of texts"):
        Settings(data=3)


@pytest.mark.parametrize("value", [None, 3, True, ["m"]])
def test_a_name_is_a_string(value):
    with pytest.raises(UserError, match=r"^model: found .*, expected text"):
        Settings(model=value)


def test_values_are_converted_to_the_type_of_the_setting():
    settings = Settings(steps=10.0, learning_rate="3e-5", weight_decay=1, model=Path("a/b"), eval_pairs=("en-de:c",))
    assert (settings.steps, type(settings.steps)) == (10, int)
    assert (settings.learning_rate, settings.weight_decay) == (3e-5, 1.0)
    assert type(settings.weight_decay) is float
    assert (settings.model, settings.eval_pairs) == ("a/b", ["en-de:c"])
    assert Settings(seed=2**63 + 1).seed == 2**63 + 1
    assert Settings(seed=-5).seed == -5


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_positive_values_are_more_than_0(name, value):
    with pytest.raises(UserError, match=f"^{name}: found {value}.*, expected more than 0"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", SHARES)
def test_shares_are_between_0_and_1(name):
    for value in (-0.1, 1.1, 5):
        with pytest.raises(UserError, match=f"^{name}: found {value}"):
            Settings(**{name: value})
    assert getattr(Settings(**{name: 0}), name) == 0.0
    if name.startswith("adam"):  # Adam divides by 1 − β
        with pytest.raises(UserError, match=f"^{name}: found 1.0, expected 0 or more and less than 1"):
            Settings(**{name: 1})
    else:
        assert getattr(Settings(**{name: 1}), name) == 1.0


@pytest.mark.parametrize("value", [0, 32768])
def test_max_tokens_has_bounds(value):
    with pytest.raises(UserError, match=f"^max_tokens: found {value}, expected 1 to 32767"):
        Settings(max_tokens=value)


def test_max_upsampling_is_at_least_1():
    with pytest.raises(UserError, match=r"^max_upsampling: found 0.9, expected at least 1"):
        Settings(max_upsampling=0.9)
    assert Settings(max_upsampling=1).max_upsampling == 1.0


@pytest.mark.parametrize("name", ["weight_decay", "tlm_weight", "moco_weight"])
def test_weights_are_not_negative(name):
    with pytest.raises(UserError, match=f"^{name}: found -0.5, expected at least 0"):
        Settings(**{name: -0.5})
    assert getattr(Settings(**{name: 0}), name) == 0.0


@pytest.mark.parametrize(
    ("name", "value"), [("pooling", "max"), ("schedule", "cosine"), ("queue_warmup", ""), ("resume", "yes")]
)
def test_an_unknown_choice_is_an_error(name, value):
    with pytest.raises(UserError, match=rf"^{name}: found '{value}', expected one of \w+, \w+"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    "off", [{"tlm": False, "moco": False}, {"tlm_weight": 0, "moco": False}, {"tlm": False, "moco_weight": 0}]
)
def test_one_objective_must_be_enabled(off):
    with pytest.raises(UserError, match="found both disabled or with weight 0"):
        Settings(**off)


def test_unknown_names_are_errors():
    with pytest.raises(TypeError, match="optimizer"):
        Settings(optimizer="adam")


def test_require_names_the_missing_setting():
    with pytest.raises(UserError, match=r"^deepspeed_config: not given, expected DeepSpeed JSON.*--deepspeed-config"):
        Settings(model="m").require("model", "deepspeed_config")
    Settings(model="m").require("model")


def test_a_negative_queue_size_is_an_error():
    with pytest.raises(UserError, match=r"^queue_size: found -1, expected at least 0"):
        Settings(queue_size=-1)


def test_the_sentence_objective_is_the_contrast_if_enabled():
    assert Settings().sentence_objective == "moco"
    assert Settings(contrast="symmetric").sentence_objective == "symmetric"
    assert Settings(contrast="symmetric", moco=False).sentence_objective is None


# The settings of a run.


def test_the_settings_of_a_run_are_valid_input(tmp_path):
    settings = Settings(
        model="größe/模型",
        data=["store", "größer"],
        output="run",
        steps=7,
        learning_rate=1e-7,
        adam_epsilon=1e-12,
        tlm=False,
        eval_pairs=["en-de:dev.en,dev.de", "zh_Hant-en:x.tsv"],
    )
    path = tmp_path / "settings.yaml"
    write_yaml(settings, path, store={"path": "store", "pairs": {"en-de": 3}})
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["store"] == {"path": "store", "pairs": {"en-de": 3}}
    assert parse("--settings", str(path)) == settings
    assert parse("--settings", str(path), "--epochs", "2") == dataclasses.replace(settings, steps=None, epochs=2.0)


def test_every_setting_is_saved_and_read_back(tmp_path):
    values = {f.name: f.default for f in FIELDS.values() if f.default is not dataclasses.MISSING}
    changed = {name: not value if isinstance(value, bool) else value for name, value in values.items()}
    changed |= dict.fromkeys(SHARES, 0.1 + 0.2)
    changed |= {"projection_dim": 16} | {name: 16 for name in POSITIVE if name not in ("steps", "epochs")}
    changed |= {"tlm": True, "steps": 3, "seed": -9, "tlm_weight": 1 / 3, "schedule": "constant", "resume": "never"}
    settings = Settings(**changed)
    write_yaml(settings, tmp_path / "s.yaml")
    assert Settings(**read_yaml(Settings, tmp_path / "s.yaml")) == settings


@pytest.mark.parametrize("dim", [-8, 100, 4104])
def test_the_projection_width_must_fit_infonce(dim):
    with pytest.raises(UserError, match=f"projection_dim: found {dim}, expected a multiple of 8 up to 4096"):
        Settings(projection_dim=dim)
