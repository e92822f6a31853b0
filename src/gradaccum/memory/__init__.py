"""What fits: the ledger of a training step's memory, and the search for the largest micro-batch."""
