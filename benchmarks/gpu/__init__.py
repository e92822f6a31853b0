"""What only a GPU can say: measured truth for the predictions, written so that an hour with a card is enough.

    python -m benchmarks.gpu all --out DIR --minutes 8    # every part, one after the other; again, and it goes on
    python -m benchmarks.gpu.compare DIR                  # afterwards, on any machine: predicted beside measured
    python -m benchmarks.gpu.compare --dry                # without a GPU: every case is built and traced

It runs from the repository alone: PyTorch 2.11 or later and Python 3.11 or later, nothing to install or download.
Most cases build their model with Transformers, those with adapters need peft; the plain ones need PyTorch alone.
DIR is a folder of a few files, each a line for each result, to be copied away and back between two sittings.

cases.py              which steps are measured, as data, the most telling first
plain.py, recipe.py   their models, batches, optimizers and loops: the same for a GPU, a CPU and a trace
measure.py            one case in one process
memory_truth.py       all of them, each in a process of its own, and the boundaries of smaller cards
compare.py            measured beside the trace, the closed form and the model of the allocator
allocator_programs.py random programs on the caching allocator and on its model, to the byte
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"

if importlib.util.find_spec("gradaccum") is None:
    sys.path.insert(0, str(SOURCE))
