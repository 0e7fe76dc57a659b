"""Write train.npz and val.npz for the fine-tuning demo into a folder.

They hold Fashion-MNIST's training and test images where Debian's package dataset-fashion-mnist is installed, else
1,500 and 500 of the calibration images that the repository carries. `x` is uint8 [n,1,28,28], `y` int64 [n].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from train_lenet4 import DEBIAN_FOLDER, DataError, load_split

CALIBRATION = Path(__file__).parent / "fashion_mnist_calibration.npz"
FITTED = 1500


def main(argv: list[str] | None = None) -> int:
    """Write both files and say what is in them."""
    parser = argparse.ArgumentParser(description="Write train.npz and val.npz of Fashion-MNIST.")
    parser.add_argument("out", type=Path, help="folder for the two files")
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="the IDX files (%(default)s)")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        parts = [load_split(options.data, split) for split in ("train", "test")]
        origin = str(options.data)
    except DataError as error:
        print(f"{error} Until then: the calibration images.", file=sys.stderr)
        with np.load(CALIBRATION) as arrays:
            x, y = arrays["x"], arrays["y"]
        parts = [(x[:FITTED], y[:FITTED]), (x[FITTED:], y[FITTED:])]
        origin = CALIBRATION.name
    for name, (images, labels) in zip(("train", "val"), parts, strict=True):
        np.savez(options.out / f"{name}.npz", x=images, y=labels.astype(np.int64))
        print(f"{options.out / name}.npz: {len(images)} images of {origin}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
