"""Prints every ratio as a table: ``python -m tests.benchmarks [--quick] [part ...]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from tests.benchmarks import actions, auditing, continuous, invariant, layers, scaling, training, tying

PARTS = {
    "actions": actions.rows,
    "continuous": continuous.rows,
    "training": training.rows,
    "invariant": invariant.rows,
    "auditing": auditing.rows,
    "layers": layers.rows,
    "tying": tying.rows,
    "scaling": scaling.rows,
}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints a line per ratio as it comes; returns them all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: checks that it works")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.manual_seed(0)
    results = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians, each a ratio within one run")
    for part in options.parts or PARTS:
        for label, ratio in PARTS[part](quick=options.quick):
            results[label] = ratio
            print(f"{ratio:8.3f}  {label}", flush=True)
    return results


if __name__ == "__main__":
    main()
