"""A Gradio Space that shows what an augmentation policy does to your image.

python spaces/policy_viewer/app.py
"""

import re
from typing import Any

import gradio
from PIL import Image

from ohl_accel.errors import UserError
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import multiple
from ohl_accel.report.gallery import MAX_DRAWS, Tile, draw_gallery, load_policy

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""`user/policy`; a public Space must not open local paths."""

Pictures = list[tuple[Image.Image, str]]


def view(
    name: str, file: str | None, image: Image.Image | None, draws: float, seed: float
) -> tuple[Pictures, Pictures, Pictures, list[list[str]]]:
    """Apply a policy to an image.

    Args:
        name: of a policy on the Hub; ignored if there is a file.
        file: path of an uploaded `policy.json`.
        image: in any of Pillow's modes.
        draws: number of randomly sampled operations.
        seed: of the operations and signs.

    Returns:
        Images with captions for the most probable, the randomly sampled and the least probable operations;
        and a table of all of them.

    Raises:
        gradio.Error: if one of them is not valid; shown on the page.
    """
    try:
        if image is None:
            raise UserError("give an image")
        gallery = draw_gallery(_policy(name.strip(), file), image, int(draws), int(seed))
    except UserError as error:
        raise gradio.Error(str(error), print_exception=False) from None
    kinds = {"most probable": gallery.likely, "drawn": gallery.drawn, "least probable": gallery.unlikely}
    table = [[kind, *_row(tile)] for kind, tiles in kinds.items() for tile in tiles]
    return _pictures(gallery.likely), _pictures(gallery.drawn), _pictures(gallery.unlikely), table


def _policy(name: str, file: str | None) -> Policy:
    if file is None and not HUB_NAME.fullmatch(name):
        raise UserError(
            f"policy {name!r}: give a name on the Hub such as user/policy, or upload a policy.json"
        )
    return load_policy(file or name)


def _pictures(tiles: list[Tile]) -> Pictures:
    return [(tile.image, _caption(tile)) for tile in tiles]


def _caption(tile: Tile) -> str:
    noise = f", {tile.operation.noise}" if tile.operation.noise else ""
    return f"{tile.operation.name}, {multiple(tile.operation.ratio)} x uniform{noise}"


def _row(tile: Tile) -> list[str]:
    operation = tile.operation
    percent, ratio = f"{100 * operation.probability:.4f}", multiple(operation.ratio)
    return [operation.name, percent, ratio, operation.noise or "not measured"]


def build() -> Any:
    """Build the page."""
    with gradio.Blocks(title="Policy viewer") as page:
        gradio.Markdown(
            "# Policy viewer\nWhat an augmentation policy learned by ohl_accel does to an image: its most probable "
            "operations, randomly sampled ones as in training, and its least probable ones. Operations inside the "
            "noise are neither preferred nor avoided."
        )
        with gradio.Row():
            with gradio.Column():
                name = gradio.Textbox(label="Policy on the Hub", placeholder="user/policy")
                file = gradio.File(label="or a policy.json", file_types=[".json"])
                draws = gradio.Slider(1, MAX_DRAWS, value=12, step=1, label="Random samples")
                seed = gradio.Number(value=0, precision=0, minimum=0, label="Seed")
            image = gradio.Image(label="Image", type="pil", image_mode=None)
        button = gradio.Button("Show", variant="primary")
        outputs = [
            gradio.Gallery(label=label, columns=6, object_fit="contain", format="png")
            for label in ("Most probable", "Sampled at random", "Least probable")
        ]
        table = gradio.Dataframe(
            headers=["shown as", "operation", "probability, %", "x uniform", "more than noise?"],
            label="Table",
        )
        button.click(view, [name, file, image, draws, seed], [*outputs, table], api_name="view")
    return page


if __name__ == "__main__":
    build().launch()
