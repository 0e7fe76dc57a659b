"""What each method makes of one site at one width: error and agreement on held-out images, mean and spread.

    python benchmarks/methods.py [--keep 20] [--candidates 100] [--seeds 3] [--after conv1] [--methods obs …]

Prints a Markdown table. The seed draws the candidates, the split and the random subset.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import onnx_compnet as oc
from onnx_compnet.config import CONSTRUCTED, METHODS

MODELS = Path(__file__).parent.parent / "models"


def main() -> None:
    """Grow with every method and seed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--after", default="conv1")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--keep", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    fitting = [method for method in METHODS if method not in CONSTRUCTED]
    parser.add_argument("--methods", nargs="+", choices=fitting, default=fitting)
    options = parser.parse_args()

    print("| method | kept | site error | relative error of logits | agreement |")
    print("|---|---|---|---|---|")
    for method in options.methods:
        growths = [
            oc.grow(
                MODELS / "lenet4.onnx",
                options.after,
                MODELS / "fashion_mnist_calibration.npz",
                scale=1 / 255,
                method=method,
                candidates=options.candidates,
                keep=options.keep,
                seed=seed,
            )
            for seed in range(options.seeds)
        ]
        kept = ", ".join(str(len(growth.kept)) for growth in growths)
        outcomes = [growth.verdict.outputs["logits"] for growth in growths]
        cells = [
            _spread([growth.site_error for growth in growths]),
            _spread([outcome.rel_error for outcome in outcomes]),
            _spread([outcome.agreement or 0.0 for outcome in outcomes]),
        ]
        print(f"| `{method}` | {kept} | " + " | ".join(cells) + " |", flush=True)


def _spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
