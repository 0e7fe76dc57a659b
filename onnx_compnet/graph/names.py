"""What a NAME means: the site that a user asks for, and the name that a site is given.

The first kind that knows the name counts: node name, output tensor (or graph input), weight or weight prefix
("conv3" of "conv3.weight"), module path, last path component. A tensor's name means exactly that tensor; all
others lead forward, through activations, pooling and normalisation, to the tensor in front of the layers that
read it. "tensor:NAME" always means the tensor NAME; it is for one whose name is taken by a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property

from onnx import ModelProto

from onnx_compnet.errors import AmbiguousNameError, NameNotFoundError, UnsupportedError
from onnx_compnet.graph.blocks import NotABlockError
from onnx_compnet.graph.forward import Forward
from onnx_compnet.graph.index import GraphIndex, is_op
from onnx_compnet.graph.listing import Listing, list_places
from onnx_compnet.graph.readers import is_linear
from onnx_compnet.graph.scopes import enclosing, last_component, scope
from onnx_compnet.graph.structures import Refusal, Site
from onnx_compnet.graph.survey import Survey, survey
from onnx_compnet.graph.weights import find_constant

TENSOR_PREFIX = "tensor:"
ALL_CONVS = "all-convs"
_SHOWN = 8


def resolve(model: ModelProto, name: str, mode: str = "auto") -> Site:
    """The site that ``name`` means, in ``mode`` "replace", "block" or "auto": "replace" where it is possible.

    Raises:
        NameNotFoundError: nothing answers to it; ``candidates`` are the nearest names.
        AmbiguousNameError: it means several places; ``candidates`` are names of single ones.
        UnsupportedError: the place is not a site; the message says why.
    """
    return Names(survey(model)).resolve(name, mode)


def behind_convs(model: ModelProto, mode: str = "auto") -> tuple[list[Site], list[str]] | None:
    """What "all-convs" means: the sites behind each Conv, in graph order, and why others have none.

    None where the model has a node, tensor, weight or module of that name.

    Raises:
        UnsupportedError: no Conv of the model has a site.
    """
    known = Names(survey(model))
    return None if known.places(ALL_CONVS) else known.behind_convs(mode)


class Names:
    """All names of one survey."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._index: GraphIndex = survey.index
        self._forward = Forward(survey)
        self._nodes: dict[str, list[int]] = {}
        self._weights: dict[str, list[int]] = {}
        self._scopes: dict[str, list[int]] = {}
        self._prefixes_of: dict[int, list[str]] = {}
        self._scope_of: dict[int, str] = {}
        for position, node in enumerate(self._index.nodes):
            if node.name:
                self._nodes.setdefault(node.name, []).append(position)
            path = scope(node)
            self._scope_of[position] = path
            for around in enclosing(path):
                self._scopes.setdefault(around, []).append(position)
            constant = any(name in self._index.constants for name in node.output)
            if not constant and not is_op(node, "Identity", "Shape"):
                self._add_weights(position, node.input)

    def _add_weights(self, position: int, inputs: Iterable[str]) -> None:
        for name in inputs:
            source = find_constant(self._index, name) if name else None
            if source is None or not source.dims or source.dtype is None:
                continue
            prefix = source.tensor.rpartition(".")[0]
            for known in (source.tensor, prefix):
                if known and position not in self._weights.setdefault(known, []):
                    self._weights[known].append(position)
            own = self._prefixes_of.setdefault(position, [])
            if prefix:
                own.append(prefix)

    # ------------------------------------------------------------ a name → places

    def places(self, name: str) -> list[str]:
        """The tensors that a name may mean; [] where nothing answers to it."""
        index = self._index
        if name.startswith(TENSOR_PREFIX) and index.is_tensor(name.removeprefix(TENSOR_PREFIX)):
            return [name.removeprefix(TENSOR_PREFIX)]
        if name in self._nodes:
            return self._ahead(self._nodes[name])
        if index.is_tensor(name) and find_constant(index, name) is None:
            # Dynamo calls the output of a module "linear" "linear", too: a module that leads to a site goes first.
            module = name in self._weights or name in self._scopes
            if name in self._survey.sites or not module:
                return [name]
        if name in self._weights:
            return self._ahead(self._of_weight(name))
        if name in self._scopes:
            return self._of_scope(self._scopes[name])
        return list(dict.fromkeys(p for full in self._by_last.get(name, ()) for p in self.places(full)))

    def _ahead(self, positions: list[int]) -> list[str]:
        return list(
            dict.fromkeys(place for position in positions for place in self._forward.places(position))
        )

    def _of_weight(self, name: str) -> list[int]:
        """The nodes that a weight or prefix names; not those that merely share a merged bias."""
        positions = self._weights[name]
        in_scope = [position for position in positions if self._scope_of[position] == name]
        if in_scope:
            return in_scope
        counts = {p: self._prefixes_of.get(p, []).count(name) for p in positions}
        return [position for position in positions if counts[position] == max(counts.values())]

    def _of_scope(self, positions: list[int]) -> list[str]:
        linear = [position for position in positions if is_linear(self._index.nodes[position])]
        if linear:
            return self._ahead(linear)
        inside = set(positions)

        def leaves(position: int) -> bool:
            outputs = [name for name in self._index.nodes[position].output if name]
            reading = [reader for name in outputs for reader in self._index.consumers.get(name, ())]
            outer = any(name in self._index.outputs or name in self._index.captured for name in outputs)
            return outer or not inside.issuperset(reading)

        return self._ahead([position for position in positions if leaves(position)])

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        found: dict[str, dict[str, None]] = {}
        for full in (*self._weights, *self._scopes, *self._nodes):
            last = last_component(full)
            if last != full:
                found.setdefault(last, {})[full] = None
        return {last: list(names) for last, names in found.items()}

    # ------------------------------------------------------------ a name → the site

    def resolve(self, name: str, mode: str = "auto") -> Site:
        """The site that ``name`` means; see ``resolve`` above for the errors."""
        places = self.places(name)
        if not places:
            raise self._not_found(name)
        if len(places) > 1:
            raise self._ambiguous(name, places)
        (place,) = places
        if mode != "block" and place in self._survey.sites:
            return self.sites[place]
        try:
            block = self._survey.block(place)
        except NotABlockError as error:
            why, no_block = self._survey.why_not(place), str(error)
            reason = (
                no_block if mode == "block" or no_block == why else f"{why}; nor can a block: it {no_block}"
            )
            raise self._unsupported(name, place, why if mode == "replace" else reason) from None
        if mode == "replace":
            why = f"{self._survey.why_not(place)} (mode block can grow there)"
            raise self._unsupported(name, place, why)
        known = self.sites.get(place)
        return replace(block, name=name if known is None or known.mode == "replace" else known.name)

    def behind_convs(self, mode: str) -> tuple[list[Site], list[str]]:
        """See ``behind_convs`` above."""
        found: dict[str, Site] = {}
        skipped: dict[str, str] = {}
        for position, node in enumerate(self._index.nodes):
            for place in self._forward.places(position) if is_op(node, "Conv") else ():
                if place in found or place in skipped:
                    continue
                try:
                    site = self.resolve(TENSOR_PREFIX + place, mode)
                except UnsupportedError as error:
                    skipped[place] = str(error)
                    continue
                listed = self.sites.get(place)
                found[place] = site if listed is None else replace(site, name=listed.name)
        if not found:
            reasons = "; ".join(skipped.values()) or "it has no Conv"
            raise UnsupportedError(f"'{ALL_CONVS}' finds no place to grow in this model: {reasons}")
        return list(found.values()), list(skipped.values())

    @staticmethod
    def _unsupported(name: str, place: str, why: str) -> UnsupportedError:
        what = (
            f"'{place}'"
            if name in (place, TENSOR_PREFIX + place)
            else f"'{name}' leads to the tensor '{place}', which"
        )
        return UnsupportedError(
            f"nothing can be grown after '{name}': {what} {why}; "
            "`onnx-compnet sites` lists the places where a layer can be grown"
        )

    def _not_found(self, name: str) -> NameNotFoundError:
        own = [site.name for site in self.sites.values()]
        known = dict.fromkeys((*own, *self._scopes, *self._weights, *self._nodes, *self._index.producers))
        near = get_close_matches(name, list(known), n=_SHOWN, cutoff=0.6)
        shown = near or own[:_SHOWN]
        hint = f"did you mean {_listed(shown)}?" if near else f"places to grow: {_listed(shown) or 'none'}"
        return NameNotFoundError(
            f"the model has no node, tensor, weight or module named '{name}'; {hint}", shown
        )

    def _ambiguous(self, name: str, places: list[str]) -> AmbiguousNameError:
        names = [self.sites[place].name for place in places if place in self.sites]
        if names:
            advice = f"take one of {_listed(names[:_SHOWN])}"
        else:
            advice = f"none of them is listed by `onnx-compnet sites` (the first is '{places[0]}')"
        return AmbiguousNameError(f"'{name}' means {len(places)} places in the model; {advice}", names)

    # ------------------------------------------------------------ the site → a name

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The listed sites, by tensor, with their names."""
        ways: dict[str, list[int]] = {}
        for position, node in enumerate(self._index.nodes):
            if not is_op(node, "Constant", "Shape"):
                for place in self._forward.places(position):
                    if place in self._listing.sites:
                        ways.setdefault(place, []).append(position)
        return {
            tensor: replace(site, name=self._name(tensor, ways.get(tensor, [])))
            for tensor, site in self._listing.sites.items()
        }

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The linear nodes in front of which nothing can be grown."""
        return self._listing.refusals

    @cached_property
    def _listing(self) -> Listing:
        return list_places(self._survey, self._forward)

    def _name(self, tensor: str, ways: list[int]) -> str:
        nodes = self._index.nodes
        ordered = sorted(ways, key=lambda position: (not is_linear(nodes[position]), position))
        proposals = [prefix for position in ordered for prefix in self._prefixes_of.get(position, ())]
        proposals += [self._scope_of[position] for position in ordered]
        proposals += [nodes[position].name for position in ordered]
        for name in proposals:
            if name and self.places(name) == [tensor]:
                return name
        return tensor if self.places(tensor) == [tensor] else TENSOR_PREFIX + tensor


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
