"""Recipes: what is right is read, what is wrong is told in one sentence with file, key and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftsmith.errors import UsageError
from draftsmith.train.recipe import Recipe, read_recipe, stage_settings
from draftsmith.train.schema import STAGES, DataSource, DistillStage, SftStage

GOOD = """
output = "out"
[stage.first]
kind = "sft"
model = "some/model"
data = ["a.jsonl", {path = "b.parquet", format = "sharegpt", limit = 3}]
learning_rate = 1
[stage.distill]
data = "c.jsonl"
loss = "tv"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_and_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    first, second = recipe.stages
    assert isinstance(first, SftStage)
    assert isinstance(second, DistillStage)
    assert (first.name, first.kind, first.model) == ("first", "sft", "some/model")
    assert first.data == (DataSource(path="a.jsonl"), DataSource(path="b.parquet", format="sharegpt", limit=3))
    assert (first.learning_rate, type(first.learning_rate)) == (1.0, float)
    assert (second.loss, second.epochs) == ("tv", 1.0)
    assert recipe.model_of(second) == "out/first"
    assert stage_settings(second)["data"] == ({"path": "c.jsonl", "format": "auto", "limit": None},)


def test_overrides_reach_every_key(tmp_path: Path) -> None:
    overrides = ["output=elsewhere", "first.learning_rate=2e-5", "stage.distill.loss=jsd", "distill.data=['x', 'y']"]
    recipe = read_recipe(write(tmp_path, GOOD), overrides)
    first, second = recipe.stages
    assert isinstance(first, SftStage)
    assert isinstance(second, DistillStage)
    assert recipe.output == Path("elsewhere")
    assert first.learning_rate == 2e-5
    assert second.loss == "jsd"
    assert [source.path for source in second.data] == ["x", "y"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('output = "out"', "", "output is None; expected the folder to write to"),
        ('kind = "sft"', 'kind = "tune"', "stage.first.kind is 'tune'; expected one of init, extend, generate, sft"),
        ("learning_rate = 1", 'learning_rate = "high"', "stage.first.learning_rate is 'high'; expected a number"),
        ("learning_rate = 1", "learning_rate = 0.0", "stage.first.learning_rate is 0.0; it must be above 0"),
        ("learning_rate = 1", "learning_rate = nan", "stage.first.learning_rate is nan; it must be above 0"),
        ("learning_rate = 1", "learnig_rate = 1", "stage.first: the key 'learnig_rate' is unknown"),
        ("learning_rate = 1", "learning_rate = 1" + "0" * 400, "stage.first.learning_rate is inf; it must be above 0"),
        ("learning_rate = 1", "learning_rate = 1" + "0" * 5000, "is not TOML"),
        ("learning_rate = 1", "steps = -1" + "0" * 400, "it must be 0 or more"),
        ("learning_rate = 1", "steps = 1.5", "stage.first.steps is 1.5; expected a whole number"),
        ("learning_rate = 1", "gradient_checkpointing = 1", "expected true or false"),
        ("learning_rate = 1", "batch_tokens = 100", "batch_tokens is 100; expected at least max_length, 2048"),
        ("limit = 3", "limit = 0", "stage.first.data[1].limit is 0; it must be at least 1"),
        ('format = "sharegpt"', 'format = "odd"', "data[1].format is 'odd'; expected one of auto, alpaca"),
        ('data = "c.jsonl"', "", "stage.distill.data is missing"),
        ('loss = "tv"', 'loss = "l2"', "stage.distill.loss is 'l2'; expected one of forward_kl"),
        ("[stage.distill]", "[stages.distill]", "the key 'stages' is unknown"),
        ('output = "out"', 'output = "out', "is not TOML"),
    ],
)
def test_what_is_wrong_is_told(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("first.learning_rate", "is not key=value"),
        ("third.steps=3", "names no stage of the recipe; it has first, distill"),
        ("first.data.path=x", "goes through 'data', which is no table"),
        ("first.steps=many", "stage.first.steps is 'many'; expected a whole number"),
    ],
)
def test_wrong_overrides_are_told(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"override|steps") as caught:
        read_recipe(write(tmp_path, GOOD), [override])
    assert said in str(caught.value)


def test_missing_and_empty_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="there is no stage"):
        read_recipe(write(tmp_path, 'output = "x"'))


def test_a_packed_draft_is_taken_as_it_is(tmp_path: Path) -> None:
    """It is told before any other stage does its work."""
    text = 'output = "out"\n[stage.begin]\nkind = "init"\nmodel = "some/model"\npacked = "embedded"\n'
    [stage] = read_recipe(write(tmp_path, text)).stages
    assert getattr(stage, "packed") == "embedded"  # noqa: B009 - the list holds stages of any kind
    for key, value in (("num_layers", "1"), ("from_scratch", "true"), ("data", '"x.jsonl"')):
        with pytest.raises(UsageError, match=f"stage.begin has both packed and {key}"):
            read_recipe(write(tmp_path, f"{text}{key} = {value}\n"))


def test_paths_are_found_beside_the_recipe_and_by_stage(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    (tmp_path / "a.jsonl").write_text("")
    assert recipe.locate("a.jsonl") == str(tmp_path / "a.jsonl")
    assert recipe.locate("elsewhere.jsonl") == "elsewhere.jsonl"
    assert recipe.locate("stage:first") == "out/first"
    assert recipe.locate("stage:first/heldout") == "out/first/heldout"
    with pytest.raises(UsageError, match="of a stage there is all, or its heldout"):
        recipe.locate("stage:first/../../etc")
    with pytest.raises(UsageError, match="has no stage 'last'"):
        recipe.locate("stage:last")


def test_the_first_stage_needs_a_model(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD.replace('model = "some/model"', "")))
    with pytest.raises(UsageError, match=r"stage\.first\.model is missing"):
        recipe.model_of(recipe.stages[0])


def test_every_shipped_recipe_can_be_read(repository: Path) -> None:
    recipes: list[Recipe] = [read_recipe(path) for path in sorted((repository / "recipes").glob("*.toml"))]
    assert recipes
    for recipe in recipes:
        for stage in recipe.stages:
            assert type(stage) is STAGES[stage.kind]
            recipe.model_of(stage)
