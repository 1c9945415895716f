"""The model card: what the Hub shows about a published run, with metadata for its search."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ohl_accel import __version__
from ohl_accel.data.source import IN_MEMORY
from ohl_accel.hub.contents import HEATMAP, MARGINALS, REWARDS, Finished
from ohl_accel.operations.space import Space
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import moved_in_words, multiple
from ohl_accel.recipe import DataSection, HubSection, Recipe
from ohl_accel.report.comparisons import Found, comparisons_of
from ohl_accel.report.operations import least_probable, most_probable
from ohl_accel.run_folder.result import in_words, main_score, metric_of

PAPER = "https://arxiv.org/abs/1905.07373"
_CITATION = """@inproceedings{lin2019ohl,
  title={Online Hyper-parameter Learning for Auto-Augmentation Strategy},
  author={Lin, Chen and Guo, Minghao and Li, Chuming and Yuan, Xin and Wu, Wei and Yan, Junjie and Lin, Dahua
    and Ouyang, Wanli},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2019}
}"""
_CITED = f"## Citation\n\n[Paper]({PAPER})\n\n```bibtex\n{_CITATION}\n```\n"
_TAGS = ("data-augmentation", "ohl-auto-aug", "ohl_accel", "arxiv:1905.07373")


def model_card(run: Finished, section: HubSection) -> str:
    """The README.md of a repository: metadata as YAML, then text."""
    parts = [f"---\n{_metadata(run, section).to_yaml()}\n---\n", _introduction(run, section)]
    if not section.policy_only:
        parts.append(_use_of_the_network(run, section))
    if run.policy is not None:
        parts += [_use_of_the_policy(section), _learned(run.policy)]
        parts.append(_compared(comparisons_of(run.path, run.recipe)))
    parts.append(_training(run))
    parts.append(_CITED)
    return "\n".join(parts)


def policy_card(policy: Policy, section: HubSection) -> str:
    """The README.md of a repository with a policy alone, without the run that learned it."""
    metadata = ModelCardData(
        library_name="ohl_accel",
        license=section.license,
        tags=list(dict.fromkeys([*_TAGS, *section.tags])),
        model_name=_name(section),
    )
    known = {
        key.replace("_", " "): value
        for key, value in policy.provenance.items()
        if isinstance(value, str | int | float)
    }
    parts = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# {_name(section)}\n\nAn augmentation policy (OHL-Auto-Aug, [Lin et al., ICCV 2019]({PAPER}); "
        f"ohl_accel {__version__}).\n",
        _use_of_the_policy(section),
        _learned(policy),
        _compared([]),
    ]
    if known:
        parts.append(f"## Where it was learned\n\n{_table(known)}\n")
    parts.append(_CITED)
    return "\n".join(parts)


def hub_dataset(data: DataSection) -> str | None:
    """The dataset's id on the Hub, if it came from there."""
    on_hub = (
        re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", data.path)
        and data.path != IN_MEMORY
        and not Path(data.path).exists()
    )
    return data.path if on_hub else None


def _metadata(run: Finished, section: HubSection) -> ModelCardData:
    recipe, dataset = run.recipe, hub_dataset(run.recipe.data)
    results = []
    metric = metric_of(run.result)
    kinds = {
        f"test_{metric}": (metric, metric[0].upper() + metric[1:]),
        "test_top5_accuracy": ("accuracy_top_5", "Top-5 accuracy"),
    }
    for key, (kind, name) in kinds.items():
        if key in run.result and not section.policy_only:
            results.append(
                EvalResult(
                    task_type="image-classification",
                    task_name="Image classification",
                    dataset_type=dataset or "local",
                    dataset_name=dataset or Path(recipe.data.path).name,
                    dataset_config=recipe.data.name,
                    dataset_split=recipe.data.test_split,
                    dataset_revision=recipe.data.revision,
                    metric_type=kind,
                    metric_name=name,
                    metric_value=round(run.result[key], 6),
                )
            )
    return ModelCardData(
        library_name="ohl_accel" if section.policy_only else "timm",
        pipeline_tag=None if section.policy_only else "image-classification",
        license=section.license,
        datasets=[dataset] if dataset else None,
        metrics=[metric],
        tags=list(dict.fromkeys([*_TAGS, *section.tags])),
        model_name=_name(section),
        eval_results=results or None,
    )


def _introduction(run: Finished, section: HubSection) -> str:
    recipe = run.recipe
    what = "An augmentation policy" if section.policy_only else _code(recipe.model.name)
    how = (
        "learned while the network trained"
        if run.policy is not None
        else f"trained with {_policy_name(recipe)}"
    )
    lines = [f"# {_name(section)}", ""]
    if section.policy_only:
        lines.append(f"{what}, learned on {_data_name(recipe.data)} while {_code(recipe.model.name)} trained")
    elif run.policy is not None and recipe.outer.trajectories > 1:
        lines.append(f"{what}, trained on {_data_name(recipe.data)}, and the augmentation policy {how}")
    else:
        lines.append(
            f"{what}, trained on {_data_name(recipe.data)} with augmentation policy {_policy_name(recipe)}"
        )
    lines[-1] += f" (OHL-Auto-Aug, [Lin et al., ICCV 2019]({PAPER}); ohl_accel {__version__})."
    metric, score = metric_of(run.result), main_score(run.result)
    if score is not None:
        images = run.result["test_images"]
        lines += ["", f"Test {metric} of the network: **{in_words(metric, score)}** of {images} images."]
    return "\n".join(lines) + "\n"


def _use_of_the_network(run: Finished, section: HubSection) -> str:
    needs_ours = (
        "import ohl_accel.models  # registers the architecture\n"
        if run.recipe.model.name.endswith("_cifar")
        else ""
    )
    return f"""## How to use the network

```python
import timm
{needs_ours}
network = timm.create_model("hf-hub:{section.repo}", pretrained=True).eval()
```

`network.pretrained_cfg` has the image size, mean and standard deviation, and `label_names`.
"""


def _use_of_the_policy(section: HubSection) -> str:
    return f"""## How to use the policy

```bash
pip install ohl-accel
```

```python
from ohl_accel import PolicyTransform
transform = PolicyTransform("{section.repo}")
```

In a pipeline it comes before what makes floats:

```python
import torch
from ohl_accel import PolicyTransform
from torchvision.transforms import v2

transform = v2.Compose([
    v2.RandomHorizontalFlip(),
    PolicyTransform("{section.repo}"),  # PIL images, or uint8 tensors
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
])
```

To train a network with it: `ohl-accel train RECIPE augment.policy={section.repo}`.
"""


def _compared(found: Sequence[Found]) -> str:
    """The comparisons of a run as tables; or that there is none."""
    if not found:
        return """## Was it compared?

No: it is not known whether this policy is better than a uniform one, or than none. `ohl-accel compare` finds out.
"""
    parts = ["## Was it compared?\n"]
    for each in found:
        comparison = each.comparison
        lines = [
            f"Yes: {each.why}. Test scores in %, and differences from {_contender(comparison.reference, each)} in "
            "points, paired by seed:\n",
            "| policy | seeds | mean | difference | 95 % interval | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for row in comparison.rows:
            interval = row.t_interval
            cells = [
                _contender(row.policy, each),
                f"{row.n}",
                f"{100 * row.mean:.2f}",
                "" if row.difference is None else f"{100 * row.difference:+.2f}",
                "" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}",
                row.verdict,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _contender(name: str, found: Found) -> str:
    """A contender's name; of a path only the last part, which reveals nothing about the machine."""
    if name in found.own and "/" in name:
        return "**this policy**"
    text = _code((Path(name).name or "policy").replace("|", "/"))
    return f"{text} (as this run)" if name in found.own else text


def _learned(policy: Policy) -> str:
    rows = [
        f"| {what} | {each.name} | {multiple(each.ratio)} | {each.noise or 'not measured'} |"
        for what, ranked in (("most probable", most_probable), ("least probable", least_probable))
        for each in ranked(policy, 5)
    ]
    header = ["| | operation | probability / uniform | more than noise? |", "|---|---|---|---|"]
    table = "\n".join([*header, *rows])
    uniform = policy.space.max_entropy
    return f"""## The learned policy

One probability for each of {policy.space.num_operations:,} operations ({_combination(policy.space)}). Entropy
{policy.entropy:.4f} nats; the uniform policy has {uniform:.4f}.

![probability of each operation]({HEATMAP})

![probability of each element]({MARGINALS})

{table}

{_evidence(policy)}
"""


def _evidence(policy: Policy) -> str:
    """Whether the policy can be told from noise, in a paragraph, and the elements that can."""
    evidence = policy.evidence
    if evidence is None:
        return "Whether this policy is more than noise was not measured."
    measured = f" ({evidence.measurements})" if evidence.measurements else ""
    text = (
        f"After {evidence.outer_steps} outer steps the policy is **{evidence.verdict}**{measured}; p is the "
        "probability to get this far from the start if rewards teach nothing."
    )
    moved = policy.moved_elements
    if not moved:
        return f"{text} No single element can be told from {evidence.reference}."
    return "\n".join(
        [f"{text} Elements that noise does not explain:\n", *(f"- {each}" for each in moved_in_words(moved))]
    )


def _combination(space: Space) -> str:
    """A space in words, such as `ordered pairs of the 36 elements of the space paper`."""
    what = {1: "each", 2: "ordered pairs", 3: "ordered triples"}[space.arity]
    different = ", of different transforms" if space.combine == "distinct" and space.arity > 1 else ""
    return f"{what} of the {space.num_elements} elements of the space {space.name}{different}"


def _training(run: Finished) -> str:
    recipe = run.recipe
    rows = {
        "data": _data_name(recipe.data),
        "network": _code(recipe.model.name),
        "trajectories": recipe.outer.trajectories,
        "outer steps": recipe.outer.steps,
        "images trained on, all trajectories": f"{run.result['images_trained_on']:,}",
        "seed": recipe.run.seed,
        "precision": recipe.run.mixed_precision,
    }
    metric, score = metric_of(run.result), main_score(run.result, "heldout")
    if score is not None:
        rows[f"held-out {metric} of the winner (selected by it, so optimistic)"] = in_words(metric, score)
    return f"""## Training

![held-out scores and losses over the outer steps]({REWARDS})

{_table(rows)}

`recipe.yaml` reproduces the run: `ohl-accel search recipe.yaml run.dir=runs/again`. `metrics.jsonl` has a
line for each outer step.
"""


def _table(rows: Mapping[str, object]) -> str:
    cells = {name: str(value).replace("|", "\\|").replace("\n", " ") for name, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells.items())])


def _code(text: str) -> str:
    """Foreign text as code, with a fence that is longer than any in it: nothing in it is HTML or Markdown."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def _policy_name(recipe: Recipe) -> str:
    policy = str(recipe.augment.policy)
    return policy if re.fullmatch(r"[\w.@/-]+", policy) else _code(policy)


def _name(section: HubSection) -> str:
    assert section.repo is not None
    return section.repo.split("/")[1]


def _data_name(data: DataSection) -> str:
    """The dataset in the card; of a local path only the last part, which reveals nothing about the machine."""
    dataset = hub_dataset(data)
    if dataset is not None:
        return f"[{dataset}](https://huggingface.co/datasets/{dataset})"
    return "images given in Python" if data.path == IN_MEMORY else _code(Path(data.path).name)
