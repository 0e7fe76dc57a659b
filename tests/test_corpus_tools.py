"""The corpus's tools on files that the tests write themselves: nothing is downloaded here."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import corpus, corpus_data
from benchmarks.corpus import CorpusError, Origin, UnreachableError

CONTENT = b"weights"
DIGEST = corpus.sha256(CONTENT)
PACKAGE = Origin("package", "models==1.0")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(corpus.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"models/{name}.onnx", content)
    return path


def sdist(path: Path, name: str, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as file:
        item = tarfile.TarInfo(name)
        item.size = len(content)
        file.addfile(item, io.BytesIO(content))
    return path


class Registry:
    """Stands in for pip and npm: downloads are copies of one archive, and counted."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.downloads = archive, 0

    def __call__(self, origin: Origin, folder: Path) -> None:
        self.downloads += 1
        (folder / self.archive.name).write_bytes(self.archive.read_bytes())


@pytest.fixture
def registry(tmp_path, monkeypatch):
    found = Registry(wheel(tmp_path / "models-1.0-py3-none-any.whl", a=CONTENT, b=b"others"))
    monkeypatch.setattr(corpus, "_download", found)
    return found


# ---------------------------------------------------------------- the catalogue


def test_the_catalogue_is_complete_and_names_no_host():
    models, data = corpus.models(), corpus.data_sets()
    assert len(models) == 15
    assert len(data) == 5
    assert {model.data for model in models.values()} - {None} <= set(data)
    for model in models.values():
        assert len(model.sha256) == 64
        assert set(model.batch) | set(model.below) | set(model.value) <= set(model.fed)
    assert 0 < sum(model.small for model in models.values()) < len(models)
    assert "://" not in corpus.CATALOGUE.read_text("utf-8")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(CorpusError, match="mtcnn_pnet"):
        corpus.model_path("mtcnn")
    with pytest.raises(CorpusError, match="mnist-5k"):
        corpus.data_paths("mnist")


# ---------------------------------------------------------------- fetching


def test_a_file_is_fetched_once_and_checked(registry, cache):
    path = corpus.fetch(PACKAGE, "models/a.onnx", DIGEST)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert corpus.fetch(PACKAGE, "models/a.onnx", DIGEST) == path
    assert corpus.fetch(PACKAGE, "models/b.onnx", corpus.sha256(b"others")).read_bytes() == b"others"
    assert registry.downloads == 1
    left = [item.name for item in cache.rglob("*") if item.name.startswith((".part", ".download"))]
    assert left == []


def test_a_damaged_file_in_the_cache_is_replaced(registry):
    path = corpus.fetch(PACKAGE, "models/a.onnx", DIGEST)
    path.write_bytes(b"half")
    assert corpus.fetch(PACKAGE, "models/a.onnx", DIGEST).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_not_kept(registry, cache):
    with pytest.raises(CorpusError, match=f"SHA-256 {DIGEST}, {'0' * 64} was expected"):
        corpus.fetch(PACKAGE, "models/a.onnx", "0" * 64)
    assert not list((cache / "files").rglob("*.onnx")) if (cache / "files").exists() else True


def test_a_missing_member_is_named(registry):
    with pytest.raises(CorpusError, match=r"has no member models/c\.onnx"):
        corpus.fetch(PACKAGE, "models/c.onnx", DIGEST)


def test_members_of_source_archives_with_and_without_their_top_folder(tmp_path):
    path = sdist(tmp_path / "models-1.0.tar.gz", "models-1.0/models/a.onnx", CONTENT)
    assert corpus.member(path, "models/a.onnx") == CONTENT
    assert corpus.member(path, "models-1.0/models/a.onnx") == CONTENT
    with pytest.raises(CorpusError, match=r"has no member a\.onnx"):
        corpus.member(path, "a.onnx")


@pytest.mark.parametrize("name", ["broken.whl", "broken.tar.gz"])
def test_a_broken_archive(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CorpusError, match="no archive that can be read"):
        corpus.member(path, "models/a.onnx")


def test_a_failed_download_gives_the_clients_reason(monkeypatch):
    def refuse(command, **_):
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(UnreachableError, match=r"models==1\.0 can't be downloaded.*No matching distribution"):
        corpus.fetch(PACKAGE, "models/a.onnx", DIGEST)


def test_a_missing_client_and_a_download_without_end(monkeypatch):
    def missing(command, **_):
        raise FileNotFoundError(command[0])

    def endless(command, **_):
        raise subprocess.TimeoutExpired(command, 600)

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(UnreachableError, match="npm is not installed"):
        corpus.archive(Origin("npm", "digits@1.0"))
    monkeypatch.setattr(subprocess, "run", endless)
    with pytest.raises(UnreachableError, match="no end after"):
        corpus.archive(PACKAGE)


def test_a_debian_package_is_read_where_it_is_installed(tmp_path):
    origin, path = Origin("debian", "data-set"), tmp_path / "images"
    with pytest.raises(UnreachableError, match="apt-get install data-set"):
        corpus.fetch(origin, str(path), DIGEST)
    path.write_bytes(CONTENT)
    assert corpus.fetch(origin, str(path), DIGEST) == path
    with pytest.raises(CorpusError, match="not the expected version"):
        corpus.fetch(origin, str(path), "0" * 64)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(TypeError):
        corpus.write_atomically(tmp_path / "file", None)
    assert list(tmp_path.glob("*")) == []


# ---------------------------------------------------------------- data


def test_idx(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes()
    whole, cut, other = (tmp_path / name for name in ("whole.gz", "cut.gz", "other.gz"))
    whole.write_bytes(gzip.compress(head + images.tobytes()))
    cut.write_bytes(gzip.compress(head + images.tobytes()[:-1]))
    other.write_bytes(gzip.compress(b"text"))
    np.testing.assert_array_equal(corpus_data.read_idx(whole), images)
    with pytest.raises(CorpusError, match="truncated: 23 of 24"):
        corpus_data.read_idx(cut)
    with pytest.raises(CorpusError, match="no IDX file"):
        corpus_data.read_idx(other)
    labels = tmp_path / "labels.gz"
    labels.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 5])))
    x, y = corpus_data.read_idx_pairs([whole, labels])
    assert x.shape == (2, 3, 4)
    assert y.tolist() == [7, 5]


def test_csv(tmp_path):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(("\n".join([",".join(["9"] * 784 + ["3"])] * 2)).encode()))
    images, labels = corpus_data.read_csv([path])
    assert images.shape == (2, 28, 28)
    assert images.dtype == np.uint8
    assert labels.tolist() == [3, 3]
    path.write_bytes(gzip.compress(b"1,2,3\n"))
    with pytest.raises(CorpusError, match="785 were expected"):
        corpus_data.read_csv([path])


def test_digits(tmp_path):
    path = tmp_path / "4.json"
    path.write_text(json.dumps({"data": [0.2] * 784 + [1] * 784}))
    images, labels = corpus_data.read_digits([path])
    assert images[:, 0, 0].tolist() == [51, 255]
    assert labels.tolist() == [4, 4]
    path.write_text(json.dumps({"data": [0.2] * 783}))
    with pytest.raises(CorpusError, match="no multiple of 784"):
        corpus_data.read_digits([path])


def test_series_of_different_lengths(tmp_path):
    path = tmp_path / "vowels.ts"
    path.write_text("# a comment\n@dimensions 2\n@data\n1.5,2:3,4:1\n\n5:6:2\n")
    samples, labels = corpus_data.read_series([path])
    assert samples.tolist() == [[[1.5, 2], [3, 4]], [[5, 0], [6, 0]]]
    assert labels.tolist() == [1, 2]
    path.write_text("@data\n")
    with pytest.raises(CorpusError, match="no series"):
        corpus_data.read_series([path])


def test_patches_of_the_two_sides_come_from_different_blocks(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:128, 128:] = picture[128:, :128] = 200  # the held-out fields
    image.fromarray(picture).save(tmp_path / "picture.png")
    monkeypatch.setattr(corpus_data, "data_paths", lambda _: [tmp_path / "picture.png"])
    rng = np.random.default_rng(0)
    for size in ((32, 32), (160, 130)):
        assert set(np.unique(corpus_data.patches(size, 4, rng, held_out=False))) == {0}
        held_out = corpus_data.patches(size, 4, rng, held_out=True)
        assert held_out.shape == (4, *size, 3)
        assert set(np.unique(held_out)) == {200}


def test_patches_are_no_data_set_with_labels(monkeypatch):
    monkeypatch.setattr(corpus_data, "data_paths", lambda _: [])
    with pytest.raises(CorpusError, match="cut patches"):
        corpus_data.load("colour-patches")
