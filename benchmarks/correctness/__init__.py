"""Who is right: known failure cases of accumulating loops in installed libraries, beside one concatenated batch."""
