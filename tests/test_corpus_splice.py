"""A layer put into every model of the coverage benchmark leaves the rest of the file byte for byte as it was.

The new weights are random: nothing is fitted, no data is needed. Of trained models the small half is always tried;
the others, exports and onnx's light models where they lie in the cache already.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnx_compnet as oc
from benchmarks import corpus, coverage_cases, coverage_measure
from onnx_compnet.graph.splice import splice
from onnx_compnet.layers import Activation, Array, CandidateLayer, NewLayers, ReaderWeights

SITES = 8
MANY_BYTES = 200_000_000  # in all the parents that are tried at the sites of one model

CASES = {case.name: case for case in coverage_cases.cases()}
SMALL = {model.name for model in corpus.models().values() if model.small}


def path_of(case: coverage_cases.Case) -> Path:
    """The model's file; skips where it would have to be fetched or exported, the small ones apart."""
    if case.group == "torchvision":
        family, exporter = case.name.rsplit("_", 1)
        found = sorted((corpus.cache_folder() / "exports").glob(f"*/{family}_*_{exporter}.onnx"))
    elif case.group == "light":
        found = sorted((corpus.cache_folder() / "light").glob(f"*/{case.name}.onnx"))
    elif case.group == "corpus" and case.name not in SMALL:
        model = corpus.models()[case.name]
        found = [corpus.cache_folder() / "files" / model.sha256[:16] / Path(model.path).name]
    else:
        try:
            return case.path()
        except corpus.UnreachableError as error:
            pytest.skip(str(error))
    if not found or not found[0].is_file():
        pytest.skip("not in the cache; benchmarks/coverage.py puts it there")
    return found[0]


def random_layers(site: oc.Site, random: np.random.Generator) -> NewLayers:
    """Two neurons for each group of the readers."""
    neurons = 2 * site.groups
    dtype = np.dtype(site.dtype)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32).astype(dtype)

    kernel = (3,) * len(site.spatial) if site.kind == "conv" else ()
    layer = CandidateLayer(
        site.kind, Activation("relu"), draw(neurons, site.channels, *kernel), draw(neurons),
        channel_axis=site.channel_axis,
    )  # fmt: skip
    readers = tuple(
        ReaderWeights(
            draw(neurons // reader.geometry.groups * reader.geometry.taps, reader.features),
            draw(reader.features),
        )
        for reader in site.linear
    )
    return NewLayers(layer, readers)


@pytest.mark.corpus
@pytest.mark.parametrize("name", CASES)
def test_everything_outside_the_edit_is_byte_for_byte_the_same(name):
    path = path_of(CASES[name])
    model = oc.load(path)
    sites = oc.find_sites(model)
    most = min(max(MANY_BYTES // path.stat().st_size, 1), SITES)
    if len(sites) > most:
        sites = [sites[int(place)] for place in np.linspace(0, len(sites) - 1, most)]
    before = coverage_measure.invalid(model)
    random = np.random.default_rng(0)
    for site in sites:
        spliced = splice(model, site, random_layers(site, random), site.name)
        targets = [old for old, _ in spliced.targets]
        assert coverage_measure.differences(model, spliced.model, site.tensor, targets) == [], site.name
        assert coverage_measure.unsound(spliced.model) is None, site.name
        if before is None:
            assert coverage_measure.invalid(spliced.model) is None, site.name
