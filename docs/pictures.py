"""The screenshots in these pages, taken from a run folder by headless Chromium: `make pictures`.

python docs/pictures.py runs/digits
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from ohl_accel.report.write import write_report

FOLDER = Path(__file__).resolve().parent
WIDTH, HEIGHT, PHONE = 1000, 1560, 390
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def take(browser: Browser, run: Path, folder: Path) -> list[Path]:
    """Take all screenshots of a run's report.

    Args:
        browser: Chromium.
        run: a run folder.
        folder: for the pictures; files of the same names are replaced.

    Returns:
        report.png, its first screen on the light page beside the policy on the dark one; report_phone.png, three
        screens of a phone.
    """
    with tempfile.TemporaryDirectory() as temporary:
        page = write_report(run, lambda text: None, Path(temporary) / "report.html")
        light = _screen(browser, page, WIDTH, "light", "header")
        dark = _screen(browser, page, WIDTH, "dark", "#elements")
        phone = [_screen(browser, page, PHONE, "light", at) for at in ("header", "#evidence", "#matrix")]
    return [_save(folder / "report.png", [light, dark]), _save(folder / "report_phone.png", phone)]


def _screen(
    browser: Browser, page: Path, width: int, theme: Literal["light", "dark"], at: str
) -> Image.Image:
    """What a window of this width shows from an element of the page downwards."""
    height = HEIGHT if width == WIDTH else 2 * PHONE
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    window = context.new_page()
    window.goto(page.as_uri())
    window.locator(at).first.evaluate("(one) => scrollTo(0, one.getBoundingClientRect().top + scrollY - 24)")
    content = window.screenshot()
    context.close()
    return Image.open(io.BytesIO(content)).convert("RGB")


def _save(path: Path, screens: list[Image.Image]) -> Path:
    """Save screens side by side."""
    gap = 16
    whole = Image.new("RGB", (sum(one.width + gap for one in screens) - gap, screens[0].height), "#808890")
    left = 0
    for screen in screens:
        whole.paste(screen, (left, 0))
        left += screen.width + gap
    whole.save(path, optimize=True)
    return path


def main() -> None:
    """Take the pictures of the run that is named, into this folder."""
    parser = argparse.ArgumentParser(description="Take the screenshots of the documentation.")
    parser.add_argument("run", type=Path, help="a run folder, such as runs/digits")
    given = parser.parse_args()
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        sys.exit("no Chromium found; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for picture in take(browser, given.run, FOLDER):
            print(picture)
        browser.close()


if __name__ == "__main__":
    main()
