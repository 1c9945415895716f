"""The page of learned policies, `policies.md`, and their pictures: `make policies` writes them again.

Everything comes from the files of the policies that come with the package (`ohl_accel.policy.zoo`).
"""

import re
from pathlib import Path

from ohl_accel.policy import Policy, zoo
from ohl_accel.report.charts import noise_chart

FOLDER = Path(__file__).resolve().parent
STYLE = Path(__file__).parents[1] / "ohl_accel" / "report" / "templates" / "style.css"
_SHOWN = 6


def picture(policy: Policy) -> str | None:
    """The probability of each element against the noise band, as a file of its own that follows the reader's theme.

    Returns:
        SVG; None if the policy has no band.
    """
    chart = noise_chart(policy)
    if chart is None:
        return None
    svg = re.search(r"<svg.*?</svg>", chart, re.S)
    assert svg is not None
    used = sorted(set(re.findall(r"var\((--\w+)\)", svg[0])))
    pairs = {
        name: re.search(rf"{name}: light-dark\((#\w+), (#\w+)\)", STYLE.read_text(encoding="utf-8"))
        for name in used
    }
    colours = [(name, found[1], found[2]) for name, found in pairs.items() if found is not None]
    light = " ".join(f"{name}: {colour};" for name, colour, _ in colours)
    dark = " ".join(f"{name}: {colour};" for name, _, colour in colours)
    style = (
        f"<style>svg {{ {light} font-family: system-ui, sans-serif; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    )
    return re.sub(r"(<svg[^>]*>)", lambda tag: tag[1] + style, svg[0], count=1)


def section(name: str) -> list[str]:
    """What the page says of a policy."""
    policy = Policy.from_pretrained(f"zoo:{name}")
    gain = zoo.gain_of(policy.provenance)
    ratio_E = policy.element_probabilities.mean(0) * policy.space.num_elements
    order = ratio_E.argsort(descending=True).tolist()

    def listed(elements: list[int]) -> str:
        return ", ".join(f"{policy.space.elements[e].name} ({ratio_E[e]:.2g} ×)" for e in elements)

    lines = [
        f"## zoo:{name}",
        "",
        f"{gain}.",
        "",
        "```python",
        "from ohl_accel import PolicyTransform",
        "",
        f'transform = PolicyTransform("zoo:{name}")',
        "```",
        "",
        f"- Most probable elements, in multiples of uniform: {listed(order[:_SHOWN])}",
        f"- Least probable: {listed(order[: -_SHOWN - 1 : -1])}",
        f"- Accuracies: {', '.join(f'{100 * a:.2f}' for a in gain.learned)} % with it, "
        f"{', '.join(f'{100 * a:.2f}' for a in gain.uniform)} % with the uniform policy, seeds "
        f"{', '.join(map(str, gain.seeds))}",
        f"- Measured by `{gain.command}`",
        "",
    ]
    if policy.evidence is not None:
        lines += [
            f"![Probability of each element of zoo:{name} over uniform, in front of the noise band](policy-{name}.svg)",
            "",
            "Grey: where noise alone would have left the elements of this search, all together with a probability of "
            "95 %. The gain above is a stronger statement: it was measured on trainings of other seeds.",
            "",
        ]
    return lines


def page() -> str:
    """The whole page."""
    lines = [
        "# Learned policies",
        "",
        "Policies that come with the package. Each was learned by a search, and then beat the uniform policy in "
        "trainings with seeds that were not used for the search or for choosing, with an interval above 0; others are "
        "not taken. `ohl-accel policies` lists them. The page is written by `make policies`.",
        "",
    ]
    for name in zoo.names():
        lines += section(name)
    return "\n".join(lines)


def main() -> None:
    """Write the page and the pictures."""
    (FOLDER / "policies.md").write_text(page(), encoding="utf-8")
    for name in zoo.names():
        drawn = picture(Policy.from_pretrained(f"zoo:{name}"))
        if drawn is not None:
            (FOLDER / f"policy-{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
