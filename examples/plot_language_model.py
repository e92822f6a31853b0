"""Runs `language_model.py` in three ways, and draws their losses: docs/language_model.svg, from language_model.json.

python examples/plot_language_model.py          # ten minutes on two cores
python examples/plot_language_model.py --draw   # from the numbers that are there
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.show.html import el
from gradaccum.show.svg import line, picture, text

if TYPE_CHECKING:
    from gradaccum.show.html import Markup

FOLDER = Path(__file__).resolve().parent
SCRIPT, NUMBERS, PICTURE = (
    FOLDER / "language_model.py",
    FOLDER / "language_model.json",
    FOLDER.parent / "docs" / "language_model.svg",
)

# What is run: 2 ranks, and 64 paragraphs an update in each.
RUNS = {
    "1 x 64": ["--micro-batch", "32", "--accum-steps", "1"],
    "16 x 4": ["--micro-batch", "2", "--accum-steps", "16"],
    "16 x 4, a mean of means": ["--micro-batch", "2", "--accum-steps", "16", "--mistake"],
}
LOOK = {  # colour, width and dashes of each: the second is drawn upon the first
    "1 x 64": ("#2f81f7", 6, None),
    "16 x 4": ("currentColor", 2, "6 4"),
    "16 x 4, a mean of means": ("#d1242f", 2, None),
}
STYLE = "<style>svg{color:#1f2328;font-family:sans-serif}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
WIDTH, LEFT, RIGHT = 560, 44, 12


def run(arguments: list[str]) -> dict[str, Any]:
    """The losses of one run under torchrun: of each update, and on held-out text."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "losses.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, str(SCRIPT), *arguments, "--out", str(out)], check=True, env=environment)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def drawing(losses: dict[str, dict[str, Any]]) -> str:
    """The training losses as SVG, from the tenth update on; below, how far each is from that of one big batch."""
    curves = {name: each["training"][9:] for name, each in losses.items()}
    base = curves[next(iter(curves))]
    apart = {name: [mine - right for mine, right in zip(each, base)] for name, each in curves.items()}
    last = 9 + len(base)
    drawn = panel(curves, last, 24, 190, "training loss, nats a byte", 0.5)
    drawn += panel(apart, last, 258, 90, "its distance from that of 1 x 64", 0.1)
    for number, (name, (colour, width, dashes)) in enumerate(LOOK.items()):
        look = {"stroke": colour, "stroke-dasharray": dashes, "stroke-width": width}
        drawn.append(el("path", {"d": f"M{WIDTH - 236} {36 + 20 * number}h36", **look}))
        drawn.append(text(WIDTH - 192, 40 + 20 * number, name))
    drawn.append(text(WIDTH - RIGHT, 384, "updates of 64 paragraphs", anchor="end"))
    words = "The training losses of 1 x 64 and of 16 x 4 lie on each other; that of the mean of means is another one."
    svg = str(picture("The same update in two ways, and the usual mistake", words, WIDTH, 392, *drawn))
    return svg.replace("<title>", f"{STYLE}<title>", 1) + "\n"


def panel(curves: dict[str, list[float]], last: int, top: int, height: int, title: str, step: float) -> list[Markup]:
    """Axes and curves; the curves end with update `last`, and a mark of the vertical axis stands at each `step`."""
    values = [value for each in curves.values() for value in each]
    low, high = (
        step * rounded(value / step) for rounded, value in ((math.floor, min(values)), (math.ceil, max(values)))
    )

    def place(update: int, value: float) -> tuple[int, int]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * update / last
        return round(across), round(top + height * (high - value) / (high - low))

    drawn = [line("axis", f"M{LEFT} {top}V{top + height}H{WIDTH - RIGHT}"), text(LEFT, top - 8, title)]
    for mark in range(round((high - low) / step) + 1):
        value = low + mark * step
        drawn.append(text(LEFT - 6, place(0, value)[1] + 4, f"{value:.1f}", anchor="end"))
    for update in range(0, last + 1, 20):
        drawn.append(text(place(update, low)[0], top + height + 16, str(update), anchor="middle"))
    for name, each in curves.items():
        colour, width, dashes = LOOK[name]
        path = "M" + "L".join("{} {}".format(*place(last - len(each) + number, y)) for number, y in enumerate(each, 1))
        look = {"stroke": colour, "stroke-dasharray": dashes, "stroke-width": width}
        drawn.append(el("path", {"d": path, "fill": "none", **look}))
    return drawn


def main() -> None:
    """Run, write the numbers, draw."""
    if "--draw" not in sys.argv:
        losses = {name: run(arguments) for name, arguments in RUNS.items()}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        NUMBERS.write_text(json.dumps({"versions": versions, "runs": RUNS, "losses": losses}) + "\n")
    PICTURE.write_text(drawing(json.loads(NUMBERS.read_text())["losses"]))


if __name__ == "__main__":
    main()
