"""The rooms that import torch. Importing this package imports none of them, and no torch.

trace    what a training step allocates, in order, without a GPU and without a single weight
"""

from __future__ import annotations
