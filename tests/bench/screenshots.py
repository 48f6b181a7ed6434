"""The README's pictures of the server's page: a conversation with an artifact at the width of a desktop and a phone.

usage: python tests/bench/screenshots.py artifacts/tiny-int4 .github/images
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from chromium import WIDTHS, chromium, opened
from served import serving

QUESTIONS = ("What is the opposite of hot?", "What sound does a cow make?", "Count to five.", "Tell me a story.")
COLORS = 64  # of the palette: the page has few, and the edges of its letters need the rest


def main(artifact: Path, folder: Path) -> None:
    """Write page-WIDTH.png, a picture for each width."""
    with serving({artifact.name: artifact}) as served, chromium() as browser:
        for size, (width, _) in WIDTHS.items():
            with opened(browser, served.url, size) as page:
                page.evaluate("document.getElementById('temperature').value = 0")
                for question in QUESTIONS:
                    page.fill("#prompt", question)
                    page.click("#send")
                    page.wait_for_selector("#send:visible")
                page.locator("#figures", has_text="memory").wait_for()
                page.evaluate("document.activeElement.blur()")
                picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
            path = folder / f"page-{width}.png"
            picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
