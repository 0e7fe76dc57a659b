"""How narrow each method can be at an error on fresh data, and what a path of wide layers costs.

    python benchmarks/selection.py [--activations relu gelu tanh] [--candidates 100] [--seeds 3] [--errors .3 .1]
    python benchmarks/selection.py --timing [--candidates 512]

The first prints a Markdown table: LeNet4, behind conv1, candidates in front of its 5×5 convolution; 1,400 images
fitted, 300 to choose a width on, 300 fresh. A width is the first of the path whose error on the fresh images is small
enough, the mean over the seeds; the seed draws candidates, split and the random order. The second makes a reader with
3×3 taps and 512 outputs from random numbers and times the paths and the price of all widths.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from onnx_compnet.config import activation_named
from onnx_compnet.layers import Activation, ConvGeometry
from onnx_compnet.numerics import selection
from onnx_compnet.numerics.algorithms import select
from onnx_compnet.numerics.initialise import candidates
from onnx_compnet.numerics.moments import Moments, MomentsAccumulator
from onnx_compnet.numerics.problems import Problem, arranged
from onnx_compnet.numerics.rows import new_layer, row_chunks, target_rows
from onnx_compnet.numerics.selection import Order
from onnx_compnet.numerics.widths import WidthCurve, width_curve

MODELS = Path(__file__).parent.parent / "models"
SITE, TARGET, KERNEL = "/MaxPool_output_0", "/conv2/Conv_output_0", 5
FITTED, CHOOSING = 1400, 300
UNREACHED = float("inf")
Paths = dict[str, list[tuple[int, float]]]


def main() -> None:
    """Print the table, or the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--activations", nargs="+", default=["relu", "gelu", "tanh"])
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--errors", nargs="+", type=float, default=[0.3, 0.2, 0.1, 0.07])
    parser.add_argument("--timing", action="store_true")
    options = parser.parse_args()
    if options.timing:
        times(options.candidates or 512)
    else:
        table(options.activations, options.candidates or 100, options.seeds, options.errors)


def table(activations: Sequence[str], Dn: int, seeds: int, errors: Sequence[float]) -> None:
    """Mean widths by activation and method; then how good the held-out choice of a width is on fresh images."""
    t, y = captured()
    print("| activation | method | " + " | ".join(f"error {e:g}" for e in errors) + f" | all {Dn} |")
    print("|---" * (len(errors) + 3) + "|")
    optimism: list[float] = []
    for name in activations:
        found = [site(t, y, activation_named(name), Dn, seed) for seed in range(seeds)]
        for method in found[0][1]:
            cells = []
            for error in errors:
                widths = [first(fresh[method], error) for _, fresh in found]
                mean = statistics.mean(widths)
                cells.append("–" if mean == UNREACHED else f"{mean:.1f}")
            last = statistics.mean(fresh[method][-1][1] for _, fresh in found)
            print(f"| {name} | {method} | " + " | ".join(cells) + f" | {last:.3f} |", flush=True)
        for held_out, fresh in found:
            for error in errors:
                width = first(held_out["obs"], error)
                if width != UNREACHED:
                    optimism.append(dict(fresh["obs"])[int(width)] / dict(held_out["obs"])[int(width)])
    spread = f"{min(optimism):.3f} to {max(optimism):.3f}"
    print(
        f"\nfresh error / held-out error where obs chose the width: {statistics.mean(optimism):.3f} ({spread})"
    )


def captured() -> tuple[torch.Tensor, torch.Tensor]:
    """The site's tensor and the reader's output for all images."""
    model = onnx.load(MODELS / "lenet4.onnx")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (SITE, TARGET))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.load(MODELS / "fashion_mnist_calibration.npz") as data:
        x = data["x"].astype(np.float32) / np.float32(255)
    t, y = session.run([SITE, TARGET], {session.get_inputs()[0].name: x})
    return torch.from_numpy(t), torch.from_numpy(y)


def site(t: torch.Tensor, y: torch.Tensor, h: Activation, Dn: int, seed: int) -> tuple[Paths, Paths]:
    """Of each method (width, error) along its path: on the images to choose on, and on fresh ones."""
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))
    layer = candidates("conv", t.shape[1], Dn, (3, 3), h, seed=seed, dtype=np.dtype(np.float32))
    reader = ConvGeometry((KERNEL, KERNEL), (1, 1), (1, 1), (0, 0, 0, 0))
    parts = order[:FITTED], order[FITTED : FITTED + CHOOSING], order[FITTED + CHOOSING :]
    fitted, choosing, fresh = (moments(t[part], y[part], layer, reader) for part in parts)
    curves: list[Paths] = []
    for measured in (choosing, fresh):
        problems = arranged([Problem(fitted, measured, KERNEL**2)])
        drawn = torch.randperm(Dn, generator=torch.Generator().manual_seed(seed)).numpy()
        orders: dict[str, Callable[[], Order]] = {
            "obs": lambda problems=problems: selection.obs(problems),  # type: ignore[misc]
            "forward": lambda problems=problems: selection.forward(problems),  # type: ignore[misc]
            "‖T‖": lambda problems=problems: selection.by_contribution(problems),  # type: ignore[misc]
            "random": lambda drawn=drawn: Order(drawn, 1),  # type: ignore[misc]
        }
        found = {name: points(width_curve(problems, make())) for name, make in orders.items()}
        lasso = select("alg3", problems, max_error=1e9).curve
        found["alg3"] = [(width, error) for _, width, error, _ in lasso if error is not None]
        curves.append(found)
    return curves[0], curves[1]


def moments(t: torch.Tensor, y: torch.Tensor, layer: object, reader: ConvGeometry) -> Moments:
    """The moments of the candidates in front of the reader."""
    sums: MomentsAccumulator | None = None
    for part, target in zip(t.split(100), y.split(100), strict=True):
        rows, first_row = target_rows(target, reader), 0
        for u in row_chunks(new_layer(layer, part)[1], reader):  # type: ignore[arg-type]
            sums = sums or MomentsAccumulator(u.shape[1], rows.shape[1])
            sums.update(u, rows[first_row : first_row + len(u)])
            first_row += len(u)
    assert sums is not None
    return sums.result()


def points(curve: WidthCurve) -> list[tuple[int, float]]:
    """(width, worst reader's error) of each width."""
    return list(zip(curve.widths.tolist(), curve.worst.tolist(), strict=True))


def first(path: Sequence[tuple[int, float]], error: float) -> float:
    """The least width on a path with at most this error."""
    return next((float(width) for width, found in path if found <= error), UNREACHED)


def times(Dn: int, taps: int = 9, D2: int = 512, n: int = 20_000) -> None:
    """Time obs, forward to a quarter, and the price of all widths."""
    generator = torch.Generator().manual_seed(0)
    mix, weights = (torch.randn(300, size, generator=generator) for size in (Dn * taps, D2))
    both = []
    for rows in (n, n // 4):
        sums = MomentsAccumulator(Dn * taps, D2)
        for _ in range(rows // 1000):
            z = torch.randn(1000, 300, generator=generator)
            u = (z @ mix + 3 * torch.randn(1000, Dn * taps, generator=generator)).relu()
            sums.update(u, z.tanh() @ weights)
        both.append(sums.result())
    problems = arranged([Problem(both[0], both[1], taps)])
    del sums
    print(f"{Dn} candidates, {taps} taps: p = {Dn * taps}, {D2} outputs, {torch.get_num_threads()} threads")
    with clock(f"forward, to {Dn // 4} neurons"):
        selection.forward(problems, most=Dn // 4)
    with clock("obs, the whole path"):
        order = selection.obs(problems)
    with clock("the price of all widths"):
        width_curve(problems, order)
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


@contextmanager
def clock(name: str) -> Iterator[None]:
    """Print how long something took, and how much of a processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds = f"{time.perf_counter() - wall:7.1f} s ({time.process_time() - cpu:.1f} s of processor time)"
    print(f"{name:<26}{seconds}", flush=True)


if __name__ == "__main__":
    main()
