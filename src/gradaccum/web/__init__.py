"""The live page and the JSON API, over the same calls as every other face."""
