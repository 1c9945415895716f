"""Recipes: what is read, what is refused, and that one message names every problem."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from benchmarks.mutations import mutate
from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe

MINIMAL: dict[str, Any] = {
    "run": {"dir": "out"},
    "data": {"path": "images", "heldout": 100},
    "model": {"name": "resnet18"},
    "inner": {"batch_size": 32, "optimizer": {"lr": 0.1}},
    "outer": {"steps": 10},
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        Recipe.load(str(path), overrides)
    return str(caught.value).splitlines()


def test_overrides_and_defaults(recipe_file: Path) -> None:
    recipe = Recipe.load(
        str(recipe_file),
        [
            "outer.steps=3",
            "run.dir=elsewhere",
            "inner.optimizer.lr=1e-2",
            "model.args.width=8",
            "outer.inner_steps=5",
            "data.heldout=0.1",
            "data.image_size=[8, 16]",
            "augment.cutout=4",
        ],
    )
    assert (recipe.outer.steps, recipe.run.dir, recipe.inner.optimizer.lr) == (3, "elsewhere", 0.01)
    assert recipe.model.args == {"width": 8}
    assert (recipe.outer.inner_steps, recipe.data.heldout, recipe.augment.cutout) == (5, 0.1, 4)
    assert recipe.data.image_size == (8, 16)
    assert (recipe.outer.lr, recipe.outer.betas, recipe.outer.trajectories) == (0.05, (0.5, 0.999), 8)
    assert recipe.data.test_split == "test"
    assert (
        Recipe.load(str(recipe_file), ["data.image_size=32", "data.test_split=null"]).data.test_split is None
    )


def test_a_recipe_is_frozen(recipe_file: Path) -> None:
    recipe = Recipe.load(str(recipe_file))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.outer.steps = 4


def test_what_is_written_is_read_back(recipe_file: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(str(recipe_file), ["data.mean=[0.5]", "data.std=[0.25]", "data.image_size=32"])
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(str(tmp_path / "resolved.yaml")) == recipe


def test_every_problem_is_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "run: {dir: out, seed: -1}\n"
        "data: {path: images, heldout: 2.5, image_sise: 32}\n"
        "model: {}\n"
        "inner: {batch_size: many, batch_size: 32, optimizer: {lr: 0, nesterov: true, name: adamw}}\n"
        "outer: {trajectories: 4, groups: 3, steps: true}\n"
        "trajectories: 4\n"
    )
    first, *rest = problems(path, "outer.lr", "augment.flip=perhaps")
    assert first == f"{path}: 12 problems"
    text = "\n".join(rest)
    for expected in (
        "batch_size: given twice, in lines 4 and 4",
        "override 'outer.lr': must look like section.key=value",
        "run.seed: input should be greater than or equal to 0, got -1",
        "data.heldout: must be a count (a whole number from 1) or a fraction (between 0 and 1), got 2.5",
        "data.image_sise: unknown key; did you mean 'data.image_size'?",
        "model.name: is required, but missing",
        "inner.optimizer.lr: input should be greater than 0, got 0",
        "outer.steps: must be a number, not true or false, got True",
        "trajectories: unknown key; did you mean 'outer.trajectories'?",
        "augment.flip: input should be a valid boolean, unable to interpret input, got 'perhaps'",
        "outer.groups=3 does not divide outer.trajectories=4: use one of [1, 2, 4]",
        "inner.optimizer.nesterov: needs inner.optimizer.name=sgd and a momentum above 0",
    ):
        assert expected in text
    assert len(rest) == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["outer.stesp=3"], "outer.stesp: unknown key; did you mean 'outer.steps'?"),
        (["inner.batch_size=ten"], "inner.batch_size: input should be a valid integer"),
        (["outer.betas=[0.5, 1.0]"], "outer.betas: input should be less than 1, got 1.0"),
        (["outer.lr=.nan"], "outer.lr: input should be a finite number"),
        (["outer.inner_steps=0"], "outer.inner_steps: must be 'epoch' or a whole number from 1, got 0"),
        (["data.heldout=0"], "data.heldout: must be a count"),
        (["data.image_size=0"], "data.image_size: must be a side in pixels"),
        (["data.heldout_split=val"], "data.heldout, data.heldout_split: give only one"),
        (["data.heldout=null", "data.heldout_split=test"], "is also the training or the test split"),
        (["data.test_split=train"], "data.test_split='train' is also the training split"),
        (["data.mean=[0.5]"], "data.mean, data.std: give both"),
        (["inner.schedule.milestones=[3]"], "milestones=[3.0] does not go with inner.schedule.name=cosine"),
        (["inner.schedule.name=multistep"], "only multistep"),
        (["inner.schedule.warmup_epochs=10"], "warmup_epochs=10 is not below the 10 epochs"),
        (
            ["inner.optimizer.nesterov=true", "inner.optimizer.momentum=0"],
            "needs inner.optimizer.name=sgd and a momentum",
        ),
        (["run.mixed_precision=fp16"], "run.mixed_precision: input should be 'no' or 'bf16', got 'fp16'"),
        (["run.resume=always"], "run.resume: input should be 'never' or 'auto', got 'always'"),
        (
            ["outer.keep_average=true"],
            "outer.keep_average: there is no average of the weights without outer.average",
        ),
        (["run.on_loss=shrink", "outer.adopt=weights"], "run.on_loss=shrink: needs outer.adopt=state"),
        (["run.on_loss=shrink", "run.checkpoint_every=2"], "needs run.checkpoint_every=1, got 2"),
        (["augment.policy=mixup", "augment.cutmix=1"], "augment.cutmix=1 mix with every policy; use"),
        (["augment.mixup=-1"], "augment.mixup: input should be greater than or equal to 0"),
        (["outer.adopt=all"], "outer.adopt: input should be 'state' or 'weights', got 'all'"),
        (["inner.stacked=2"], "inner.stacked: input should be a valid boolean"),
        (["inner.stacked=true", "model.compile=true"], "inner.stacked, model.compile: cannot be used"),
        (["inner.clip_grad=0"], "inner.clip_grad: input should be greater than 0, got 0"),
        (["inner.auxiliary_weight=-1"], "inner.auxiliary_weight: input should be greater than or equal to 0"),
        (["run.dir.x=1"], "override 'run.dir.x=1': run.dir is not a section"),
        (["run.dir={"], "is not valid YAML; quote it"),
        (["outer=3"], "outer: input should be a valid dictionary"),
        (["hub.private=true"], "hub.private: has no effect without hub.repo"),
        (
            ["augment.random_resized_crop={scales: 1}", "data.image_size=8"],
            "random_resized_crop.scales: unknown key;",
        ),
        (
            ["augment.random_resized_crop.ratio=[2, 1]", "data.image_size=8"],
            "ratio=[2, 1]: the first must not",
        ),
    ],
)
def test_one_problem(recipe_file: Path, overrides: list[str], message: str) -> None:
    first, *rest = problems(recipe_file, *overrides)
    assert first == f"{recipe_file}: 1 problem"
    assert message in rest[0], rest


def test_rules_between_fields_whose_section_has_other_mistakes(recipe_file: Path) -> None:
    """A rule is asked as soon as its own fields are right, and not where one of them is wrong or missing."""
    crop = "augment.random_resized_crop={scale: [0.9, 0.1], ratio: [4, wide]}"
    first, *rest = problems(
        recipe_file, crop, "outer.groups=3", "outer.steps=none", "run.dir=null", "hub.tags=[a]"
    )
    assert first == f"{recipe_file}: 6 problems"
    text = "\n".join(rest)
    for expected in (
        "run.dir: input should be a valid string, got None",
        "outer.steps: input should be a valid integer, unable to parse string as an integer, got 'none'",
        "augment.random_resized_crop.ratio: input should be a valid number, unable to parse string",
        "augment.random_resized_crop.scale=[0.9, 0.1]: the first must not exceed the second",
        "outer.groups=3 does not divide outer.trajectories=8: use one of [1, 2, 4, 8]",
        "hub.tags: has no effect without hub.repo",
    ):
        assert expected in text
    _, *rest = problems(recipe_file, "outer.groups=3", "outer.trajectories=0")
    assert len(rest) == 1
    assert "outer.trajectories" in rest[0]


def test_a_recipe_of_values_and_of_a_recipe(recipe_file: Path) -> None:
    recipe = Recipe.load(str(recipe_file), ["outer.steps=3"])
    values = {**MINIMAL, "outer": {"steps": 9}}
    assert Recipe.of(recipe_file, ["outer.steps=3"]) == recipe == Recipe.of(values, ["outer.steps=3"])
    assert Recipe.of(recipe) == recipe
    assert Recipe.of(recipe, ["outer.steps=4"]).outer.steps == 4
    assert values["outer"] == {"steps": 9}
    with pytest.raises(UserError, match=r"recipe: 2 problems\n.*outer.steps: is required.*\n.*'outer.steps'"):
        Recipe.of({**MINIMAL, "outer": {"stepz": 9}})
    with pytest.raises(UserError, match=r"override 'x': must look like section.key=value"):
        Recipe.of(recipe, ["x"])


def test_files_that_are_not_recipes(tmp_path: Path, recipe_file: Path) -> None:
    missing = problems(tmp_path / "recipes.yaml")
    assert missing == [f"recipe {tmp_path / 'recipes.yaml'} does not exist; that folder has: {recipe_file}"]
    for content, message in (
        ("[1]", "mapping of sections, got list"),
        ("a: [", "not valid YAML"),
        ("", "NoneType"),
    ):
        (tmp_path / "other.yaml").write_text(content)
        assert message in problems(tmp_path / "other.yaml")[0]
    (tmp_path / "other.yaml").write_bytes(b"\xff")
    assert "cannot be read: it is not UTF-8 text" in problems(tmp_path / "other.yaml")[0]


def test_a_run_folder_is_its_recipe(tmp_path: Path, recipe_file: Path) -> None:
    assert Recipe.load(str(tmp_path)) == Recipe.load(str(recipe_file))
    (tmp_path / "empty").mkdir()
    assert "is a folder without a recipe.yaml" in problems(tmp_path / "empty")[0]


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run: {dir: a\x07b}", "not valid YAML: unacceptable character"),
        ('run: {dir: "a\\0b"}', "run.dir: holds the character '\\x00', not text"),
        ('run: {dir: "a\\ud800b"}', "run.dir: holds the character '\\ud800', not text"),
        ("run: {name: 2020-99-99}", "data: is required"),
        ("run: {seed: " + "9" * 5000 + "}", "it has 5000 digits"),
        ("run: " + "[" * 3000, "nested more than 50 deep"),
        ("run: {<<: {<<: 3}}", "expected a mapping or list of mappings"),
        ("run: &run {dir: *run}", "run holds itself"),
        ("run: {? [a] : b}", "a key must be a single word"),
        ("run: !!binary aGE=", "could not determine a constructor"),
        ("run: !!bool perhaps", "not true or false: perhaps"),
        ("run: !!int many", "not a number: many"),
        (LAUGHS, "expands to more than 50000 values"),
        ("#" * 300_000, "it has more than the 262144 bytes"),
        ("".join(f"k{n}: 1\n" for n in range(2000)), "2005 problems"),
    ],
)
def test_hostile_files_give_one_short_message(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(content)
    text = "\n".join(problems(path))
    assert message in text
    assert len(text) < 10_000


def test_mutated_recipes_are_read_or_refused(repository: Path, tmp_path: Path) -> None:
    content = (repository / "recipes" / "digits.yaml").read_bytes()
    file = tmp_path / "recipe.yaml"
    outcomes = mutate(content, file, lambda: Recipe.load(str(file)).to_yaml(), count=200)
    assert sum(outcomes.values()) == 200
    assert outcomes["refused"] > 50
    assert outcomes["read"] > 5


@pytest.mark.parametrize("name", ["digits", "cifar10_r18", "imagenet_r50"])
def test_the_recipes_of_the_repository_are_valid(repository: Path, name: str) -> None:
    Recipe.load(str(repository / "recipes" / f"{name}.yaml"))
