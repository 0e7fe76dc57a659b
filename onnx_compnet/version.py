"""The package's version and those of the libraries that its results depend on, from installed metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("onnx-compnet")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LIBRARIES = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "scipy", "torch")


def library_versions() -> dict[str, str]:
    """{distribution: version} of the libraries that are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
