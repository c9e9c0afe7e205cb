"""The matrix of changes: what finds a compiled result again, and what must not.

Every pair compiles a base and one change of it. A change that must count has to miss AOTAutograd's cache; the
base has to be found again next to it, with the same bits.
"""

from typing import Any

import pytest
import torch
from cached import (
    BASE,
    DENSE,
    Attend,
    Run,
    assert_found_with_the_same_bits,
    by_hand,
    dense,
    halved,
    hidden,
    latents,
    model,
)
from compare import assert_same_output
from torch import nn
from torch._inductor.custom_graph_pass import CustomGraphPass

import vsa_compile
from vsa_compile import methods

pytestmark = pytest.mark.no_cover


class Noop(CustomGraphPass):
    """A user's own pass; without a name it has no key."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def __call__(self, graph: torch.fx.Graph) -> None:
        pass

    def uuid(self) -> Any:
        return self.name


def user_pass(name: str | None) -> dict[str, Any]:
    return {"inductor": {"post_grad_custom_pre_pass": Noop(name)}}


MISSES = {
    "sparsity-0.75": Run(options={"sparsity": 0.75}),
    "sparsity-0.6-keeps-as-many": Run(options={"sparsity": 0.6}),
    "sparsity-0.99": Run(options={"sparsity": 0.99}),
    "method": Run(options={"method": "halved"}),
    "by-hand": Run(function=lambda: by_hand),
    "tile": Run(options={"tile": (2, 4, 2)}),
    "tile-cols": dense(options={"tile": (2, 2, 4)}),
    "tile-rows": dense(options={"tile": (2, 4, 2)}),
    "tile-frames": dense(options={"tile": (1, 2, 2)}),
    "dense-method": dense(options={"method": "halved"}),
    "min_tokens-crossed": Run(options={"min_tokens": 33}),
    "mode": dense(options={"mode": "reduce-overhead"}),
    "inductor-split": dense(options={"inductor": {"split_reductions": False}}),
    "inductor-fusion": dense(options={"inductor": {"max_fusion_size": 3}}),
    "user-pass": dense(options=user_pass("one")),
    "other-user-pass": dense(options=user_pass("two")),
    "bf16": dense(argument=lambda: latents(dtype=torch.bfloat16)),
    "fp16": dense(argument=lambda: latents(dtype=torch.float16)),
    "fp64": dense(argument=lambda: latents(dtype=torch.float64)),
    "batch": dense(argument=lambda: latents(batch=2)),
    "frames": dense(argument=lambda: latents((3, 4, 4))),
    "turned": dense(argument=lambda: latents((4, 2, 4))),
    "turned-again": dense(argument=lambda: latents((4, 4, 2))),
    "dynamic": dense(dynamic=True),
    "autocast": dense(autocast=True),
    "training": dense(grad=True),
    "scale": dense(function=lambda: model(scale=0.3)),
}

HINTED = {
    name: Run(
        function=lambda: hidden,
        argument=lambda: latents().flatten(2).transpose(1, 2)[:, None],
        options={"grid": grid},
    )
    for name, grid in {"given": (2, 4, 4), "turned": (4, 2, 4), "none": None}.items()
}

HITS = {
    "again": Run(),
    "another-model-object": Run(function=lambda: nn.Sequential(Attend())),
    "fallback-with-nothing-refused": Run(options={"fallback": "error"}),
    "min_tokens-not-crossed": Run(options={"min_tokens": 32}),
    "dense_layers-without-such-a-layer": Run(options={"dense_layers": (1, 7)}),
    "grid-that-the-graph-shows": Run(options={"grid": (4, 4, 2)}),
    "tile-as-a-list": Run(options={"tile": [2, 2, 2]}),
    "mode-default": Run(options={"mode": "default"}),
    "no-inductor-settings": Run(options={"inductor": {}}),
    "backend-object": Run(backend=vsa_compile.vsa),
}


@pytest.fixture(autouse=True)
def _second_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.registry._METHODS, "halved", halved)
    monkeypatch.setattr(methods.registry._digests, "halved", "of_the_tests", raising=False)


@pytest.mark.parametrize("name", MISSES)
def test_a_change_misses_and_is_itself_found_again(name: str) -> None:
    base = DENSE if MISSES[name].options.get("sparsity") == 0 else BASE
    first = base()
    assert first.ours == {"converted": 1}
    changed = MISSES[name]()
    assert not changed.found
    assert_found_with_the_same_bits(MISSES[name], changed)
    assert_found_with_the_same_bits(base, first)


@pytest.mark.parametrize("name", HITS)
def test_what_computes_the_same_is_found(name: str) -> None:
    first = BASE()
    assert first.ours == {"converted": 1}
    assert_found_with_the_same_bits(HITS[name], first)


def test_what_stays_dense_has_one_entry_and_shares_it_with_inductor() -> None:
    """Whatever the reason, the graph is the model's own. Another scale: "min_tokens-crossed" came first."""

    def refused(**options: Any) -> Run:
        return Run(function=lambda: model(scale=0.7), options=options)

    first = refused(dense_layers=(0,))()
    assert not first.found
    assert first.ours == {"refused": 1, "refused.dense-layer": 1}
    for other in (refused(min_tokens=33), refused(min_tokens=34, sparsity=0.75, tile=(1, 1, 1))):
        again = other()
        assert again.found
        assert again.ours == {"refused": 1, "refused.few-tokens": 1}
        assert torch.equal(again.out, first.out)
    theirs = Run(function=lambda: model(scale=0.7), backend="inductor")()
    assert theirs.found
    assert torch.equal(theirs.out, first.out)


def test_every_grid_that_is_given_has_its_own_entry() -> None:
    seen = {name: run() for name, run in HINTED.items()}
    assert not any(one.found for one in seen.values())
    for name, run in HINTED.items():
        assert_found_with_the_same_bits(run, seen[name])
    assert not torch.equal(seen["given"].out, seen["turned"].out)


def test_a_user_pass_without_a_key_bypasses_the_caches_as_without_us() -> None:
    for run in (Run(options=user_pass(None)), Run(options=user_pass(None) | {"sparsity": 0})):
        bypassed = run()
        assert bypassed.aot["autograd_cache_bypass"] == 1
        assert bypassed.ours == {"converted": 1}


def test_where_the_kernel_runs_is_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    first = BASE()
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten")
    aten = BASE()
    assert aten.found
    assert_same_output(aten.out, first.out)
