"""The page as static files: the project's own Python, lowered for MicroPython, in a folder that any host can serve."""
