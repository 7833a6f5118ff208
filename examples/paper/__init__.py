"""The paper's tables and figures from one command each: ``python -m examples.paper``."""
