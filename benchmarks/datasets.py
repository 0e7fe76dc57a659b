"""MNIST, Fashion-MNIST and CIFAR-10 as arrays, from the files in which they are given out.

    fashion-mnist   four IDX files, gzipped or not    apt-get install dataset-fashion-mnist
    mnist           four IDX files, gzipped or not
    cifar10         cifar-10-batches-py or -bin

Nothing is downloaded. Where a folder is not given, FOLDERS says where they are looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.corpus import cache_folder
from benchmarks.image_files import (
    MAGIC_IMAGES,
    MAGIC_LABELS,
    DatasetError,
    UInt8Array,
    paired,
    read_cifar_binary,
    read_cifar_pickle,
    read_idx,
)

Labels = npt.NDArray[np.int64]
NAMES = ("mnist", "fashion-mnist", "cifar10")
WHERE = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/ (the four *-ubyte.gz files)",
    "fashion-mnist": "`apt-get install dataset-fashion-mnist`, or https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html (unpack the Python or the binary version)",
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images, uint8 (n, C, H, W), with labels (n,) from 0 to 9."""

    name: str
    train_x: UInt8Array
    train_y: Labels
    test_x: UInt8Array
    test_y: Labels

    @property
    def mean(self) -> float:
        """Mean of the training images' values, which lie in [0, 1]."""
        return float(self.train_x.mean(dtype=np.float64) / 255)

    @property
    def std(self) -> float:
        """Their standard deviation."""
        counts = np.bincount(self.train_x.ravel(), minlength=256) / self.train_x.size
        values = np.arange(256) / 255
        return float(np.sqrt(counts @ (values - counts @ values) ** 2))

    def first(self, samples: int | None, test_samples: int | None) -> Images:
        """At most so many images of each part: a random choice, always the same one."""
        train, test = _some(len(self.train_x), samples), _some(len(self.test_x), test_samples)
        return Images(
            self.name, self.train_x[train], self.train_y[train], self.test_x[test], self.test_y[test]
        )

    def padded(self, size: int) -> Images:
        """Black around the images up to size × size."""
        room = size - self.train_x.shape[-1]
        if room <= 0:
            return self
        edges = ((0, 0), (0, 0), (room // 2, room - room // 2), (room // 2, room - room // 2))
        train_x, test_x = (np.pad(x, edges) for x in (self.train_x, self.test_x))
        return Images(self.name, train_x, self.train_y, test_x, self.test_y)


def default_folder(name: str) -> Path:
    """Where a data set is looked for."""
    if name == "fashion-mnist" and _DEBIAN.is_dir():
        return _DEBIAN
    return cache_folder() / "data" / name


def load(name: str, folder: Path | None = None) -> Images:
    """The data set ``name`` of NAMES. Raises DatasetError, with where to get it if it is not there."""
    place = folder or default_folder(name)
    return _load_cifar(place) if name == "cifar10" else _load_idx(name, place)


def _some(n: int, most: int | None) -> slice | npt.NDArray[np.int64]:
    if most is None or most >= n:
        return slice(None)
    return np.sort(np.random.default_rng(0).permutation(n)[:most])


def _missing(name: str, what: str, place: Path) -> DatasetError:
    return DatasetError(
        f"{name}: {what} is not in {place}; get it from {WHERE[name]} and put it there, or name its folder by --data"
    )


def _load_idx(name: str, place: Path) -> Images:
    parts = []
    for split in ("train", "t10k"):
        files = []
        for kind, magic in (("images-idx3", MAGIC_IMAGES), ("labels-idx1", MAGIC_LABELS)):
            stem = f"{split}-{kind}-ubyte"
            found = [path for path in (place / stem, place / f"{stem}.gz") if path.is_file()]
            if not found:
                raise _missing(name, f"{stem}[.gz]", place)
            files.append(read_idx(found[0], magic))
        images, labels = files
        if images.shape[1:] != (28, 28):
            raise DatasetError(f"{place}: the {split} images have {images.shape[1:]} pixels, not 28 × 28")
        parts += paired(images[:, None], labels, f"{place}, {split}")
    return Images(name, *parts)


def _load_cifar(place: Path) -> Images:
    for folder in (place, place / "cifar-10-batches-py", place / "cifar-10-batches-bin"):
        if (folder / "data_batch_1").is_file():
            reader, ending = read_cifar_pickle, ""
            break
        if (folder / "data_batch_1.bin").is_file():
            reader, ending = read_cifar_binary, ".bin"
            break
    else:
        raise _missing("cifar10", "cifar-10-batches-py or cifar-10-batches-bin", place)
    parts = []
    for names in (_BATCHES, ("test_batch",)):
        batches = []
        for name in names:
            path = folder / f"{name}{ending}"
            if not path.is_file():
                raise _missing("cifar10", path.name, folder)
            batches.append(paired(*reader(path), str(path)))
        images, labels = zip(*batches, strict=True)
        parts += [np.concatenate(images), np.concatenate(labels)]
    return Images("cifar10", *parts)
