"""Takes the pictures of the page in docs/images, light and dark: `python -m docs.make_images`.

It needs the extra `web`, Playwright and a Chromium, as the page's tests do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import ViewportSize, sync_playwright

from tests import browser

IMAGES = Path(__file__).with_name("images")
SIZE = ViewportSize(width=1280, height=860)
SCHEMES: dict[Literal["light", "dark"], str] = {"light": "page.png", "dark": "page-dark.png"}


def main() -> None:
    """Serve the page, and take one picture for each colour scheme."""
    command = [sys.executable, "-m", "gradaccum", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox"])
            for scheme, name in SCHEMES.items():
                page = chromium.new_page(viewport=SIZE, color_scheme=scheme)
                page.goto(address, wait_until="networkidle")
                page.screenshot(path=IMAGES / name)
            chromium.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    main()
