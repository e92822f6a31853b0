"""The folder that an audited command's Python processes find first on their path. It holds `sitecustomize` alone, so
that nothing else of ours can be imported by a plain name.
"""
