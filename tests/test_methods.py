"""Methods as compositions: every rule by hand, what combines them, and methods that users register."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cached
import pytest
import torch
from compare import relative_error
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor
from torch._dynamo.utils import counters

import vsa_compile
from vsa_compile import methods
from vsa_compile.grid import Grid, TileGrid
from vsa_compile.methods import (
    AtLeast,
    AtMost,
    FirstFrames,
    GaussQuantile,
    Method,
    OwnTiles,
    Queries,
    Selector,
    Site,
    SlidingTiles,
    TopK,
    TopP,
    registry,
)
from vsa_compile.ops import reference

pytestmark = pytest.mark.quick

side, edge = st.integers(1, 6), st.integers(1, 4)
BOXES = TileGrid(Grid(4, 5, 6), (2, 2, 2))  # 2 x 3 x 3 = 18 tiles


def queries(boxes: TileGrid = BOXES, sparsity: float = 0.7, rows: TileGrid | None = None) -> Queries:
    site = Site(boxes, 0, 0, None, 0.25, sparsity)
    return Queries(torch.empty(1, 2, boxes.grid.tokens, 16), site, rows or boxes)


def scores(seed: int = 0, spread: float = 1.0, boxes: TileGrid = BOXES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(1, 2, boxes.tiles, boxes.tiles, generator=generator, dtype=torch.float64)


def listed(selector: Selector, given_scores: Tensor | None, known: Queries) -> Tensor:
    """(B, H, Mq, M) bool: the lists, with all checked that must hold of any."""
    tiles, counts = selector.lists(given_scores, known)
    assert tiles.dtype == counts.dtype == torch.int32
    assert tiles.shape[-1] == selector.width(known)
    assert bool((counts >= 1).all())
    assert bool((counts <= tiles.shape[-1]).all())
    valid = torch.arange(tiles.shape[-1]) < counts[..., None]
    assert bool((tiles[..., 1:] > tiles[..., :-1])[valid[..., 1:]].all()), "ascending, and so distinct"
    seen = torch.zeros(*counts.shape, known.site.boxes.tiles, dtype=torch.int32)
    return seen.scatter_add_(-1, tiles.long().where(valid, 0), valid.int()) > 0


# --- Sparsity 0 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vsa", "bsa", "sta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparsity_0_is_dense_and_so_is_a_list_of_every_tile(name: str, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 120, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    where = {"grid": (4, 5, 6), "tile": (2, 2, 2), "method": name}
    assert torch.equal(vsa_compile.attention(q, k, v, sparsity=0, **where), dense)
    every = vsa_compile.attention(q, k, v, sparsity=1e-6, **where)
    weights = torch.randn(dense.shape, generator=generator).to(dtype)
    pairs = [(every, dense)]
    pairs += zip(*(torch.autograd.grad(out, (q, k, v), weights) for out in (every, dense)), strict=True)
    for got, wanted in pairs:
        assert relative_error(got.detach(), wanted.detach()) <= 4 * torch.finfo(dtype).eps


# --- Rules that rank ----------------------------------------------------------------------------------------


@pytest.mark.seconds
@examples(40)
@given(
    seed=st.integers(0, 999), sparsity=st.sampled_from((1e-6, 0.3, 0.7, 0.9, 0.999)),
    spread=st.sampled_from((0.0, 1e-3, 1.0, 100.0)), peaks=st.integers(0, 3),
)  # fmt: skip
def test_a_quantile_keeps_what_is_above_it_and_no_more_than_fit(seed, sparsity, spread, peaks):
    known, rule = queries(sparsity=sparsity), GaussQuantile(overflow=1.25)
    row = scores(seed, spread)
    row[..., :peaks] += 10
    threshold = reference.quantile_threshold(row, known.site.kept)
    tiles, counts = reference.select(row, rule.width(known), threshold)
    got = listed(rule, row, known)
    assert torch.equal(got.sum(-1), counts)
    assert all(got[0, h, m, tiles[0, h, m, : counts[0, h, m]].long()].all() for h in (0, 1) for m in (0, 7))
    assert torch.equal(rule.mask(row, known), row >= threshold[..., None])


def test_a_quantile_keeps_its_number_of_gaussian_scores_and_fewer_where_some_are_high():
    """The ablation of the paper: 0.86 with a fixed number is 0.89 with the threshold."""
    boxes = TileGrid(Grid(24, 60, 16), (4, 4, 4))  # 360 tiles, as at 23,000 tokens
    known, rule = queries(boxes, sparsity=0.86), GaussQuantile()
    flat = torch.randn(1, 4, 360, 360, generator=torch.Generator().manual_seed(0))
    share = float(rule.mask(flat, known).float().mean())
    assert abs(share - 0.14) < 0.005
    peaked = flat.clone()
    peaked[..., :18] += 3
    assert 0.10 < float(rule.mask(peaked, known).float().mean()) < 0.12
    assert bool((rule.lists(flat, known)[1] < rule.width(known)).all()), "no overflow"


@examples(40)
@given(seed=st.integers(0, 999), mass=st.sampled_from((0.1, 0.5, 0.9, 1.0)), spread=st.sampled_from((0.1, 5)))
def test_the_smallest_set_of_a_mass(seed: int, mass: float, spread: float):
    """By hand, row by row; the specification's threshold alike."""
    row, rule = scores(seed, spread), TopP(mass)
    got = listed(rule, row, queries())
    assert torch.equal(got, row >= reference.mass_threshold(row, mass)[..., None])
    weights = row.softmax(-1)[0, 0, 0]
    total, wanted = 0.0, set()
    for tile in weights.argsort(descending=True).tolist():
        if total >= mass - 1e-12 and wanted:
            break
        wanted.add(tile)
        total += float(weights[tile])
    assert set(got[0, 0, 0].nonzero().flatten().tolist()) == wanted or mass == 1.0


# --- Static patterns -------------------------------------------------------------------------------------


@examples(40)
@given(
    grid=st.tuples(side, side, side), tile=st.tuples(edge, edge, edge),
    extents=st.none() | st.tuples(edge, edge, edge), sparsity=st.sampled_from((1e-6, 0.3, 0.7, 0.9, 0.999)),
)  # fmt: skip
def test_sliding_tiles_are_those_of_the_specification(grid, tile, extents, sparsity):
    boxes = TileGrid(Grid(*grid), tile)
    known, rule = queries(boxes, sparsity), SlidingTiles(extents)
    used = rule._extents(known)
    assert torch.equal(listed(rule, None, known)[0, 0], reference.sliding_tiles(boxes.grid, tile, used))
    if extents is None:
        assert math.prod(used) >= (1 - sparsity) * boxes.tiles
    else:
        assert used == tuple(map(min, extents, boxes.shape))


@examples(40)
@given(
    grid=st.tuples(side, side, side), tile=st.tuples(edge, edge, edge), rows=st.tuples(edge, edge, edge),
    first=st.integers(1, 3),
)  # fmt: skip
def test_own_tiles_and_first_frames_by_their_tokens(grid, tile, rows, first):
    """Query tiles may be other boxes than key tiles, as where queries are pruned."""
    keys, boxes = TileGrid(Grid(*grid), tile), TileGrid(Grid(*grid), rows)
    known = queries(keys, rows=boxes)
    own = torch.zeros(boxes.tiles, keys.tiles, dtype=torch.bool)
    pairs = (reference.tile_of_token(keys.grid, t) for t in (rows, tile))
    own[tuple(pairs)] = True
    assert bool((listed(OwnTiles(), None, known)[0, 0] | ~own).all())
    assert torch.equal(OwnTiles().mask(None, known) & own, own)
    frames = (torch.arange(keys.grid.tokens) // (grid[1] * grid[2])) < first * tile[0]
    early = torch.zeros(keys.tiles, dtype=torch.bool)
    early[reference.tile_of_token(keys.grid, tile)[frames]] = True
    assert torch.equal(listed(FirstFrames(first), None, known)[0, 0], early.expand(boxes.tiles, -1))


# --- Combinations ----------------------------------------------------------------------------------------


@examples(20)
@given(seed=st.integers(0, 999), spread=st.sampled_from((0.1, 5.0)))
def test_combinations_are_those_of_sets(seed: int, spread: float):
    row, known = scores(seed, spread), queries()
    parts = (TopK(), TopP(0.5), OwnTiles(), GaussQuantile(overflow=9))
    sets = {part: listed(part, row, known) for part in parts}
    for one, other in itertools.combinations(parts, 2):
        assert torch.equal(listed(one | other, row, known), sets[one] | sets[other])
        both = sets[one] & sets[other]
        got = listed(one & other, row, known)
        assert torch.equal(got & both, both)
        assert bool((got == both).all(-1)[both.any(-1)].all())
    best = listed(TopK(share=4 / 18), row, known)
    assert torch.equal(listed(AtLeast(TopP(0.5), 4), row, known), sets[parts[1]] | best)
    capped = listed(AtMost(TopP(0.5), 0.2), row, known)
    assert torch.equal(capped, sets[parts[1]] & best)
    assert torch.equal(listed(AtMost(OwnTiles() | TopK(), 1), row, known), sets[parts[2]] | sets[parts[0]])


def test_a_tile_that_is_always_kept_is_seen_and_the_rest_is_as_before():
    x = torch.randn(1, 1, 120, 16, generator=torch.Generator().manual_seed(0))
    site = Site(BOXES, 0, 0, None, 0.25, 0.9)
    dye = reference.tile_of_token(BOXES.grid, BOXES.tile) < 9  # the first tiles along the frames
    v = dye.float()[None, None, :, None].expand_as(x)
    plain = Method(selector=TopK())(x, x, v, None, site)
    sink = Method(selector=TopK() | FirstFrames())(x, x, v, None, site)
    assert float(sink.min()) > 0
    assert float(plain.min()) == 0


def test_a_rule_that_ranks_needs_a_scorer():
    x = torch.randn(1, 1, 120, 16)
    with pytest.raises(vsa_compile.ArgumentError, match="TopK ranks scores, but the method has scorer=None"):
        Method(selector=TopK(), scorer=None)(x, x, x, None, Site(BOXES, 0, 0, None, 0.25, 0.5))


# --- Methods of users ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    tables = registry._METHODS, vars(registry._digests)
    before = [dict(table) for table in tables]
    yield
    sys.modules.pop("mine", None)
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)


def load(path: Path, text: str, name: str = "mine") -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where inspect looks for the source of a class
    spec.loader.exec_module(module)
    return module


SOURCE = """
from dataclasses import dataclass
from vsa_compile.methods import Method, Selector, TopK

SHIFT = 1

def helper(x):
    return x + SHIFT

def make(factor):
    def method(q, k, v, gate, site):
        return helper(q) * factor
    return method

@dataclass(frozen=True)
class Even(Selector):
    step: int = 2

    def mask(self, scores, queries):
        return scores == scores

first, second = make(2.0), Method(selector=TopK() | Even())
"""


def digests(path: Path, old: str = "", new: str = "") -> tuple[str | None, str | None]:
    assert old in SOURCE
    module = load(path, SOURCE.replace(old, new) if old else SOURCE)
    return methods.source_digest.digest(module.first), methods.source_digest.digest(module.second)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("", "", (False, False)),
        ("* factor", "/ factor", (True, False)),
        ("make(2.0)", "make(3.0)", (True, False)),
        ("x + SHIFT", "x - SHIFT", (True, False)),
        ("SHIFT = 1", "SHIFT = 2", (True, False)),
        ("scores == scores", "scores > 0", (False, True)),
        ("step: int = 2", "step: int = 3", (False, True)),
        ("Even())", "Even(step=4))", (False, True)),
        ("TopK()", "TopK(share=0.5)", (False, True)),
    ],
)
def test_a_digest_changes_with_source_closure_helpers_constants_and_fields(
    tmp_path: Path, old: str, new: str, changed: tuple[bool, bool]
):
    before = digests(tmp_path / "before.py")
    after = digests(tmp_path / "after.py", old, new)
    assert all(len(one or "") == 16 for one in (*before, *after))
    assert tuple(one != other for one, other in zip(before, after, strict=True)) == changed


def test_a_registered_method_is_an_option_and_a_literal_of_the_graph(tmp_path: Path):
    module = load(tmp_path / "mine.py", SOURCE)
    vsa_compile.register_method("doubled", module.first)
    vsa_compile.register_method("doubled", module.first)  # the same again: nothing happens
    x = torch.randn(1, 2, 120, 16)
    where = {"grid": (4, 5, 6), "tile": (2, 2, 2), "sparsity": 0.5}
    assert torch.equal(vsa_compile.attention(x, x, x, **where, method="doubled"), (x + 1) * 2)
    seen = []

    def backend(graph, inputs):
        vsa_compile.backend.convert(graph, vsa_compile.backend.read_options(options))
        calls = (node for node in graph.graph.nodes if "vsa_compile.attention" in str(node.target))
        seen.extend(x for node in calls for x in node.args if isinstance(x, str))
        return graph

    options = cached.OPTIONS | {"method": "doubled"}
    torch._dynamo.reset()
    out = torch.compile(cached.model(), backend=backend)(cached.latents())
    assert torch.equal(out, (cached.latents().flatten(2).transpose(1, 2)[:, None] + 1) * 2)
    assert seen == [f"doubled@{methods.source_digest.digest(module.first)}"]
    with pytest.raises(vsa_compile.ArgumentError, match="another version of the method 'doubled'"):
        methods.get("doubled@0123456789abcdef")


HELPERS = """
import math
RADIUS = 2

class Blur:
    @staticmethod
    def run(x): return x + RADIUS

def blur(x): return deeper.inner(x) * RADIUS
def unused(x): return x
"""
DEEPER = """
from . import helpers  # in a circle
def inner(x): return helpers.RADIUS + x
"""
USES = {  # what stands before the method, and what it is made of
    "a module": ("from lent import helpers", "return helpers.blur(q)"),
    "a package": ("import lent.helpers", "return lent.helpers.blur(q)"),
    "a module imported inside": ("", "import lent.helpers as h; return h.blur(q)"),
    "a function imported inside": ("", "from lent.helpers import blur; return blur(q)"),
    "a submodule imported inside": ("", "from lent import helpers; return helpers.blur(q)"),
    "a name in a string": ("from lent import helpers", "return getattr(helpers, 'blur')(q)"),
    "a class": ("from lent import helpers", "return helpers.Blur.run(q)"),
    "inside a function inside": ("from lent import helpers", "return (lambda x: helpers.blur(x))(q)"),
}


def digest_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: str, helpers: str, deeper: str
) -> str | None:
    """The digest of a method that uses the package `lent`, written anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == "lent"]:
        monkeypatch.delitem(sys.modules, name)
    source = "{}\ndef method(q, k, v, gate, site): {}".format(*use)
    root = folder / "lent"
    root.mkdir(parents=True)
    for name, text in (("__init__", ""), ("helpers", "from . import deeper\n" + helpers), ("deeper", deeper)):
        (root / f"{name}.py").write_text(text)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return methods.source_digest.digest(load(folder / "mine.py", source).method)


@pytest.mark.quick
@pytest.mark.parametrize("use", USES)
def test_a_digest_changes_with_what_is_called_in_other_modules(use: str, tmp_path: Path, monkeypatch):
    changes = {
        "same": (HELPERS, DEEPER),
        "unused": (HELPERS.replace("return x\n", "return -x\n"), DEEPER),
        "constant": (HELPERS.replace("RADIUS = 2", "RADIUS = 3"), DEEPER),
        "source": (HELPERS.replace("* RADIUS", "/ RADIUS").replace("x + RADIUS", "x - RADIUS"), DEEPER),
        "deeper": (HELPERS, DEEPER.replace("RADIUS + x", "RADIUS - x")),
    }
    wanted = digest_with(tmp_path / "first", monkeypatch, USES[use], HELPERS, DEEPER)
    assert len(wanted or "") == 16
    for name, (helpers, deeper) in changes.items():
        got = digest_with(tmp_path / name, monkeypatch, USES[use], helpers, deeper)
        unread = name in ("same", "unused") or (name == "deeper" and use == "a class")
        assert (got == wanted) == unread, name


@pytest.mark.quick
def test_installed_packages_count_by_their_version(tmp_path: Path, monkeypatch):
    text = "import numpy as np\nfrom numpy import linalg\n"
    text += "def method(q, k, v, gate, site): return q * float(np.sqrt(2)) * linalg.norm([1])"
    method = load(tmp_path / "mine.py", text).method
    before = methods.source_digest.digest(method)
    assert before is not None
    monkeypatch.setattr("numpy.__version__", "0.0")
    assert methods.source_digest.digest(method) not in (None, before)


@pytest.mark.quick
def test_an_edited_method_replaces_the_one_before_with_one_line(tmp_path: Path, caplog):
    module = load(tmp_path / "mine.py", SOURCE)
    x = torch.randn(1, 2, 120, 16)
    where = {"grid": (4, 5, 6), "tile": (2, 2, 2), "sparsity": 0.5, "method": "edited"}
    for factor, lines in ((2.0, 0), (2.0, 0), (3.0, 1), (3.0, 1), (2.0, 2)):
        vsa_compile.register_method("edited", module.make(factor))
        assert torch.equal(vsa_compile.attention(x, x, x, **where), (x + 1) * factor)
        assert len(caplog.records) == lines
    assert "the method 'edited' is replaced" in caplog.text


@pytest.mark.no_cover
@pytest.mark.seconds
@pytest.mark.parametrize("how", ["converted", "by hand"])
def test_compiled_code_follows_an_edited_method(how: str, tmp_path: Path):
    module = load(tmp_path / "mine.py", SOURCE)
    vsa_compile.register_method("edited", module.make(2.0))
    if how == "converted":
        run = torch.compile(cached.model(), backend="vsa", options=cached.OPTIONS | {"method": "edited"})
        x = cached.latents()
        plain = x.flatten(2).transpose(1, 2)[:, None]
    else:
        where = {"grid": (4, 5, 6), "tile": (2, 2, 2), "sparsity": 0.5, "method": "edited"}
        run = torch.compile(lambda x: vsa_compile.attention(x, x, x, **where), backend="vsa", fullgraph=True)
        x = plain = torch.randn(1, 2, 120, 16)
    for factor in (2.0, 3.0, 2.0):
        vsa_compile.register_method("edited", module.make(factor))
        assert torch.allclose(run(x), (plain + 1) * factor)


@pytest.mark.parametrize("name", ["vsa", "bsa", "sta"])
def test_our_own_methods_are_not_replaced(name: str, tmp_path: Path):
    module = load(tmp_path / "mine.py", SOURCE)
    with pytest.raises(vsa_compile.ArgumentError, match=f"'{name}' is a method of vsa_compile's own"):
        vsa_compile.register_method(name, module.first)
    vsa_compile.register_method(name, methods.get(name))  # the same again: nothing happens
    assert methods.literal(name) == name


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("a@b", print, "name is 'a@b', but it must be an identifier"),
        ("a_class", methods.Method, "a Method or a function"),
        ("mine", 3, "method is 3, but it must be a Method or a function"),
    ],
)
def test_what_is_no_method_is_not_registered(name, method, said):
    with pytest.raises(vsa_compile.ArgumentError, match=said):
        vsa_compile.register_method(name, method)


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["no source", "a tensor"])
def test_a_method_that_cannot_be_read_goes_around_the_caches_and_says_so(kind: str, tmp_path: Path, caplog):
    if kind == "no source":
        names: dict = {}
        exec("def method(q, k, v, gate, site): return q * 2", names)
        method = names["method"]
    else:
        method = load(tmp_path / "mine.py", SOURCE).make(torch.tensor(2.0))
    with caplog.at_level(logging.WARNING, "vsa_compile"):
        vsa_compile.register_method("opaque", method)
        vsa_compile.register_method("opaque", method)
    assert len(caplog.records) == 1
    assert "the source of method 'opaque'" in caplog.text
    if kind == "no source":
        counters.clear()
        torch._dynamo.reset()
        torch.compile(
            cached.model(), backend="vsa", options=cached.OPTIONS | {"method": "opaque"}
        )(cached.latents())  # fmt: skip
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 1
        assert not counters["aot_autograd"].get("autograd_cache_hit")


def test_a_name_that_nobody_registered_gets_a_guess():
    x = torch.randn(1, 1, 8, 16)
    with pytest.raises(vsa_compile.ArgumentError, match="unknown method 'bsaa'; did you mean 'bsa'"):
        vsa_compile.attention(x, x, x, grid=(2, 2, 2), method="bsaa")
    with pytest.raises(vsa_compile.ArgumentError, match="did you mean 'sta'"):
        vsa_compile.backend.read_options({"method": "stta"})
