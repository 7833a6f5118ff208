"""Examples: each script by itself, and the paper's exhibits as ``python -m examples.paper``."""
