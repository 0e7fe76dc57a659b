"""The models that coverage is measured over, and what to feed them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import constructed, corpus, corpus_data

Array = NDArray[Any]
ROOT = Path(__file__).parent.parent
FAMILIES = {  # input size: the smallest that the network takes, to save time
    "vgg11": 224,
    "resnet18": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "densenet121": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 224,
    "squeezenet1_1": 64,
    "shufflenet_v2_x0_5": 64,
    "regnet_y_400mf": 64,
    "googlenet": 64,
}
FREE = 8  # the size that a symbolic axis is given, the samples' axis apart
EXPORTERS = ("torchscript", "dynamo")


@dataclass(frozen=True)
class Input:
    """How one input is fed: ``shape`` with 0 on the samples' axis (None: a constant); see corpus.Model."""

    dtype: str
    shape: tuple[int, ...]
    axis: int | None = 0
    below: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Case:
    """A model and its data. ``batch`` is the fixed batch size, None where any will do.

    ``real`` makes samples of the first input: (n, generator, held out?) → array; ``data`` names them.
    """

    name: str
    group: str
    path: Callable[[], Path]
    inputs: Callable[[], Mapping[str, Input]]
    fixed: bool = False
    data: str = "random"
    real: Callable[[int, np.random.Generator, bool], Array] | None = None
    note: str = ""
    listing_only: bool = field(default=False)

    def feed(self, n: int, rng: np.random.Generator, *, held_out: bool) -> dict[str, Array]:
        """One complete feed of ``n`` samples."""
        arrays = {}
        for number, (name, spec) in enumerate(self.inputs().items()):
            if self.real is not None and number == 0:
                arrays[name] = self.real(n, rng, held_out)
            else:
                arrays[name] = _draw(spec, n, rng)
        return arrays


def _draw(spec: Input, n: int, rng: np.random.Generator) -> Array:
    shape = tuple(n if axis == spec.axis else size for axis, size in enumerate(spec.shape))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, _ELEMENT.get(spec.dtype, "FLOAT")))
    if spec.value is not None:
        return np.full(shape, spec.value, dtype)
    if spec.below is not None or np.dtype(spec.dtype).kind in "iu":
        return rng.integers(0, spec.below or 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


_ELEMENT = {
    "float32": "FLOAT", "float16": "FLOAT16", "float64": "DOUBLE", "int64": "INT64", "int32": "INT32",
    "uint8": "UINT8",
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every model, in the order of the document."""
    for model in corpus.models().values():
        yield _from_corpus(model)
    for family, size in FAMILIES.items():
        for exporter in EXPORTERS:
            yield _from_torchvision(family, size, exporter)
    yield from _light()
    for name in ("lenet4", "lenet4_dynamo"):
        yield Case(
            name, "own", lambda name=name: ROOT / "models" / f"{name}.onnx", lambda: {"x": Input("float32", ())},
            data="fashion-mnist calibration", real=_fashion,
        )  # fmt: skip
    yield Case("series_cnn", "constructed", _series_cnn, lambda: {"x": Input("float32", (0, 12, 29))},
               data="japanese-vowels", real=_vowels)  # fmt: skip
    for name in constructed.names():
        yield _constructed(name)


# ---------------------------------------------------------------- the corpus


def _from_corpus(model: corpus.Model) -> Case:
    inputs = {
        name: Input(
            dtype, shape, None if not shape else model.batch.get(name, 0), model.below.get(name),
            model.value.get(name),
        )
        for name, (dtype, shape) in model.fed.items()
    }  # fmt: skip
    first = next(iter(inputs.values()))
    real = REAL.get(model.name)
    data = "random" if real is None else model.data or "bytes of source files"
    return Case(
        model.name, "corpus", lambda: corpus.model_path(model.name), lambda: inputs,
        fixed=first.shape[first.axis or 0] == 1, data=data, real=real, note=model.why,
    )  # fmt: skip


def _photos(size: tuple[int, int], scale: float, shift: Any, *, first: bool, bgr: bool = False) -> Any:
    """Patches of photographs as (pixel - shift)·scale, channels first or last."""

    def make(n: int, rng: np.random.Generator, held_out: bool) -> Array:
        images = corpus_data.patches(size, n, rng, held_out=held_out).astype(np.float32)
        images = ((images[..., ::-1] if bgr else images) - np.float32(shift)) * np.float32(scale)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if first else images)

    return make


def _digits_line(n: int, rng: np.random.Generator, held_out: bool) -> Array:
    """Three digits in a row, doubled to 56 pixels, as (n, 1, 64, 160) from -1 to 1."""
    digits = _mnist()[int(held_out) :: 2]
    lines = np.zeros((n, 1, 64, 160), np.float32)
    for line in lines:
        for place in range(3):
            digit = digits[rng.integers(len(digits))].repeat(2, axis=0).repeat(2, axis=1)
            line[0, 4:60, place * 52 : place * 52 + 52] = digit[:, 2:54]
    return lines / np.float32(127.5) - 1


@lru_cache
def _mnist() -> Array:
    return corpus_data.load("mnist-5k")[0]


def _source_files(n: int, rng: np.random.Generator, held_out: bool) -> Array:
    """1,024 bytes from the start and 1,024 from the end of windows into this project's own files."""
    text = _own_text()
    half = len(text) // 2
    text = text[half:] if held_out else text[:half]
    starts = rng.integers(0, len(text) - 2048, n)
    return np.stack([np.frombuffer(text[s : s + 2048], np.uint8) for s in starts]).astype(np.int32)


@lru_cache
def _own_text() -> bytes:
    files = [ROOT / "README.md", *sorted((ROOT / "onnx_compnet").rglob("*.py"))]
    return b"".join(path.read_bytes() for path in files)


IMAGENET = {"scale": 1 / 57.0, "shift": [123.7, 116.3, 103.5]}
REAL: dict[str, Any] = {
    "mtcnn_onet": _photos((48, 48), 1 / 128, 127.5, first=False),
    "mtcnn_pnet": _photos((48, 64), 1 / 128, 127.5, first=False),
    "mtcnn_rnet": _photos((24, 24), 1 / 128, 127.5, first=False),
    "pplcnet_orientation": _photos((224, 224), **IMAGENET, first=True),
    "resnet50thin_opennsfw": _photos((224, 224), 1.0, [104.0, 117.0, 123.0], first=False, bgr=True),
    "yolox_ddddocr_det": _photos((416, 416), 1.0, 0.0, first=True, bgr=True),
    "crnn_lstm_ddddocr": _digits_line,
    "crnn_lstm_ddddocr_old_int8": _digits_line,
    "magika_v3_3": _source_files,
}

# ---------------------------------------------------------------- torchvision


def _from_torchvision(family: str, size: int, exporter: str) -> Case:
    return Case(
        f"{family}_{exporter}", "torchvision", lambda: _exported(family, size, exporter),
        lambda: {"x": Input("float32", (0, 3, size, size))},
        data="colour-patches", real=_photos((size, size), **IMAGENET, first=True),
        note=f"{size}x{size}, random weights",
    )  # fmt: skip


def network(family: str) -> Any:
    """The network with seeded random weights, its BatchNorm statistics and parameters moved off 0 and 1."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": False} if family == "googlenet" else {}
    net = getattr(models, family)(weights=None, **extra)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
    return net.eval()


def _exported(family: str, size: int, exporter: str) -> Path:
    import torch
    import torchvision

    versions = f"torch{torch.__version__}-torchvision{torchvision.__version__}".replace("+", "-")
    kept = corpus.cache_folder() / "exports" / versions / f"{family}_{size}_{exporter}.onnx"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    net, sample = network(family), torch.zeros(2, 3, size, size)
    part = kept.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            axes = ({0: torch.export.Dim("n")},)
            program = torch.onnx.export(net, (sample,), dynamo=True, dynamic_shapes=axes, verbose=False,
                                        input_names=["x"])  # fmt: skip
            program.save(part)
        else:
            torch.onnx.export(net, (sample,), part, dynamo=False, opset_version=17, input_names=["x"],
                              dynamic_axes={"x": {0: "n"}})  # fmt: skip
    return part.replace(kept)


# ---------------------------------------------------------------- onnx's light models


def _light() -> Iterator[Case]:
    """IR 3 networks that travel with onnx: their weights are drawn by ConstantOfShape, or, here, at random."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    paths = sorted(folder.glob("*.onnx"))
    for path in paths:
        yield Case(path.stem, "light", lambda path=path: _with_weights(path), lambda path=path: _declared(path),
                   fixed=True, note="random weights")  # fmt: skip
    for path in paths[:1]:
        yield Case(f"{path.stem}_as_shipped", "light", lambda path=path: path, lambda path=path: _declared(path),
                   fixed=True, note="weights computed by ConstantOfShape", listing_only=True)  # fmt: skip


def _declared(path: Path) -> dict[str, Input]:
    """The inputs as the file declares them, the first axis being the samples'."""
    graph = onnx.load(path, load_external_data=False).graph
    known = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    found = {}
    for item in graph.input:
        if item.name not in known:
            kind = item.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            axis = shape.index(0) if 0 in shape else 0
            sizes = tuple(size or (0 if at == axis else FREE) for at, size in enumerate(shape))
            found[item.name] = Input(dtype, sizes, axis)
    return found


def _with_weights(path: Path) -> Path:
    """The model with an initialiser, also an input as IR 3 wants it, for each ConstantOfShape."""
    kept = corpus.cache_folder() / "light" / f"onnx{onnx.__version__}" / path.name
    if kept.is_file():
        return kept
    model = onnx.load(path)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rest = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            rest.append(node)
            continue
        name = node.output[0]
        shape = tuple(int(size) for size in shapes[node.input[0]])
        rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
        model.graph.initializer.append(onnx.numpy_helper.from_array(_weight(shape, rng), name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del model.graph.node[:]
    model.graph.node.extend(rest)
    corpus.write_atomically(kept, model.SerializeToString())
    return kept


def _weight(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))


# ---------------------------------------------------------------- this project's own, and constructed ones


def _fashion(n: int, rng: np.random.Generator, held_out: bool) -> Array:
    with np.load(ROOT / "models" / "fashion_mnist_calibration.npz") as file:
        images = file[file.files[0]][int(held_out) :: 2]
    return (images[rng.integers(0, len(images), n)] / np.float32(255)).astype(np.float32)


@lru_cache
def _series() -> Array:
    return corpus_data.load("japanese-vowels")[0]


def _vowels(n: int, rng: np.random.Generator, held_out: bool) -> Array:
    series = _series()[int(held_out) :: 2]
    return series[rng.integers(0, len(series), n)]


def _series_cnn() -> Path:
    text = (
        "net (float[N, 12, 29] x) => (float[N, 9] y) { a = Conv<pads=[2,2]>(x, w1) r = Relu(a) "
        "b = Conv<strides=[2]>(r, w2) s = Sigmoid(b) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, w3) }"
    )
    weights = {"w1": (16, 12, 5), "w2": (24, 16, 3), "w3": (24, 9)}
    return _written("series_cnn", constructed.build("series_cnn", text, weights))


def _constructed(name: str) -> Case:
    path = lru_cache(lambda: _written(name, constructed.model(name)))
    return Case(name, "constructed", path, lambda: _declared(path()), fixed=name == "fixed_batch_1",
                note="random weights")  # fmt: skip


def _written(name: str, model: onnx.ModelProto) -> Path:
    kept = corpus.cache_folder() / "constructed" / f"{name}.onnx"
    if name == constructed.EXTERNAL:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_name(f"{name}.data").unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(model, kept, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        return kept
    corpus.write_atomically(kept, model.SerializeToString())
    return kept
