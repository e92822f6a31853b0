"""What fits: the ledger of a training step, the model of the allocator, the search for the largest micro-batch.

Bytes are integers. The standard library alone: nothing here imports torch, and no GPU is asked.
"""
