"""The rewrite: whoever uses SDPA's output cannot tell, and a failure on the way leaves no trace."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_output
from converting import OPTIONS, converting, heads, latents
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import Graph, GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.backend import convert

EXACT = OPTIONS | {"sparsity": 1e-6}
GRID = (3, 4, 5)
SPARSE = torch.ops.vsa_compile.attention.default
COPY = torch.ops.aten.contiguous.default

# What SDPA's own memory is like: (B, H, N, D) from the one, (B, N, H, D) from the other.
HEAD_MAJOR, TOKEN_MAJOR = [SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


class Used(nn.Module):
    """Attention, and what is then done with its (1, 2, N, 16)."""

    def __init__(self, use: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.use = use

    def forward(self, x: Tensor) -> Any:
        tokens = heads(x)
        return self.use(F.scaled_dot_product_attention(tokens, tokens * 0.5, tokens))


# --- Who uses the output ----------------------------------------------------------------------------------


def write_through(view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Doubles what `view` gives, which may be memory of x or not; the layout decides."""

    def use(x: Tensor) -> Tensor:
        view(x).mul_(2)
        return x

    return use


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "wider": lambda x: x.to(torch.float64),
    "doubled": lambda x: x * 2,
    "negated in place": lambda x: x.neg_(),
    "dropout": lambda x: F.dropout(x, 0.0),
    "transposed": lambda x: x.transpose(1, 2),
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))),
    "contiguous": lambda x: x.contiguous(),
    "rows viewed": lambda x: x.view(-1, x.shape[-1]),
    "rows": lambda x: x.reshape(-1, x.shape[-1]),
    "heads merged": lambda x: x.flatten(-2),
    "axes merged by a view": lambda x: x.view(-1, *x.shape[2:]),
    "half": lambda x: x.chunk(2, dim=1)[0],
    "stacked": lambda x: torch.cat([x, x + 1], dim=-1),
    "as it lies": lambda x: x.as_strided((7,), (5,)),
    "alike": lambda x: torch.zeros_like(x) + x.mean(),
    "its strides": lambda x: x * x.stride(1),
    "first rows doubled": write_through(lambda x: x.reshape(-1, x.shape[-1])),
    "merged and doubled": write_through(lambda x: x.flatten(-2)),
    "transposed, merged, doubled": write_through(lambda x: x.transpose(1, 2).flatten(2)),
}


def chain(names: list[str]) -> Callable[[Tensor], Any]:
    def use(x: Tensor) -> Any:
        for name in names:
            x = STEPS[name](x)
        return x

    return use


def same(got: Tensor, wanted: Tensor) -> None:
    assert_same_output(got, wanted)
    sizes = [size > 1 for size in got.shape]
    strides = [
        [stride for stride, counts in zip(x.stride(), sizes, strict=True) if counts] for x in (got, wanted)
    ]
    assert strides[0] == strides[1]


@example(["rows viewed"], True, False)  # which ours does not allow
@given(st.lists(st.sampled_from(list(STEPS)), max_size=4), st.booleans(), st.booleans())
@torch.no_grad()
def test_no_user_of_the_output_can_tell(names: list[str], head_major: bool, exported: bool) -> None:
    """Whatever works on SDPA's output works on ours, gives the same and lies in memory alike."""
    torch._dynamo.reset()
    model, x = Used(chain(names)), latents(GRID)
    with sdpa_kernel(HEAD_MAJOR if head_major else TOKEN_MAJOR):
        try:
            wanted = model(x)
        except (RuntimeError, IndexError):  # it fails without us, too
            assume(False)
        if exported:
            program = torch.export.export(model, (x,))
            assert vsa_compile.convert_exported(program, EXACT).converted == 1
            program.validate()
            same(program.module()(x), wanted)
        else:
            graphs: list = []
            compiled = torch.compile(model, backend=converting(graphs, sparsity=1e-6), fullgraph=True)
            same(compiled(x), wanted)
            assert [type(decision).__name__ for graph in graphs for decision in graph] == ["Conversion"]


def nodes_of(use: Callable[[Tensor], Any], kinds: list[SDPBackend]) -> list[Any]:
    """The operators of the converted graph, behind attention."""
    seen: list[Any] = []

    def spy(module: GraphModule, _: Any) -> Callable:
        convert(module, vsa_compile.Options.read(EXACT))
        module.graph.eliminate_dead_code()
        seen.extend(node.target for node in module.graph.nodes)
        for node in module.graph.nodes:  # no example value is left that speaks of SDPA's strides
            if node.target is SPARSE:
                now = node.meta["example_value"]
                for user in node.users:
                    if user.target == "transpose":
                        assert user.meta["example_value"].stride() == now.transpose(1, 2).stride()
        return module.forward

    torch._dynamo.reset()
    with sdpa_kernel(kinds), torch.no_grad():
        torch.compile(Used(use), backend=spy, fullgraph=True)(latents(GRID))
    return seen[seen.index(SPARSE) + 1 :]


@pytest.mark.quick
@pytest.mark.parametrize("kinds", [HEAD_MAJOR, TOKEN_MAJOR], ids=["head-major", "token-major"])
def test_nothing_is_copied_where_models_merge_the_heads_at_once(kinds: list[SDPBackend]) -> None:
    weight = torch.eye(32)
    for use in (
        lambda x: x.transpose(1, 2).reshape(1, -1, 32) @ weight,
        lambda x: F.linear(x.transpose(1, 2).flatten(2, 3).to(x.dtype), weight),
        lambda x: F.linear(x.permute(0, 2, 1, 3).contiguous().view(1, -1, 32), weight),
    ):
        assert COPY not in nodes_of(use, kinds)


def test_only_what_is_used_as_it_lies_is_copied() -> None:
    for use in (lambda x: x.to(torch.float64).view(2, -1, 16), lambda x: x * 2, lambda x: x):
        assert nodes_of(use, HEAD_MAJOR).count(COPY) == 1
        assert COPY not in nodes_of(use, TOKEN_MAJOR)


@torch.no_grad()
def test_writes_reach_what_they_reach_without_us() -> None:
    """Through a reshape, which is a view of SDPA's memory and of ours a copy, or the other way round."""
    for names in (["first rows doubled"], ["transposed, merged, doubled"], ["as it lies"]):
        for kinds in (HEAD_MAJOR, TOKEN_MAJOR):
            torch._dynamo.reset()
            write = chain(names)
            model = Used(lambda x, write=write: write(x).mean())  # of which the strides do not matter
            with sdpa_kernel(kinds):
                wanted = model(latents(GRID))
                got = torch.compile(model, backend=converting([], sparsity=1e-6))(latents(GRID))
            assert_same_output(got, wanted)


# --- All or nothing -----------------------------------------------------------------------------------------


def shown(module: GraphModule) -> list[str]:
    """All that tells graphs apart, of a module and its bodies."""
    parts = [part for part in module.modules() if isinstance(part, GraphModule)]
    nodes = [(part, node) for part in parts for node in part.graph.nodes]
    examples = [node.meta.get("example_value") for _, node in nodes]
    strides = [str(x.stride()) if isinstance(x, Tensor) else "" for x in examples]
    return [part.code for part in parts] + [node.format_node() or "" for _, node in nodes] + strides


EDITS = [(Graph, "call_function"), (torch.fx.Node, "replace_all_uses_with"), (Graph, "lint")]


@pytest.mark.parametrize(("owner", "name"), EDITS, ids=[name for _, name in EDITS])
@pytest.mark.parametrize(
    "dynamic",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["static", "symbolic"],
)
def test_a_failure_in_the_middle_of_the_edits_is_undone(owner: Any, name: str, dynamic: bool) -> None:
    """Every call of the functions that edit a graph fails once."""
    habits = Habits(blocks=2, checkpointed=not dynamic, text="after", mask=True)
    failures = 0

    def spy(module: GraphModule, _: Any) -> Callable:
        nonlocal failures
        before, settings = shown(module), vsa_compile.Options.read(EXACT)
        original = getattr(owner, name)
        for failing in range(100):
            calls = 0

            def sometimes(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == failing + 1:  # noqa: B023
                    raise ZeroDivisionError
                return original(*args, **kwargs)

            counters.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, sometimes)
                patch.setattr(vsa_compile.backend.log, "exception", lambda *_: None)
                decisions = convert(module, settings)
            if decisions:
                break
            assert shown(module) == before
            assert counters["vsa_compile"] == {"failed": 1}
            failures += 1
        return module.forward

    model, args = ToyDiT(habits), inputs(habits)
    with torch.no_grad():
        assert_same_output(torch.compile(model, backend=spy, dynamic=dynamic)(*args), model(*args))
    assert failures >= 1


@pytest.mark.quick
def test_what_the_rewrite_refuses_is_an_error_where_that_is_asked() -> None:
    """A gate whose query projection is outside of the checkpointed function."""

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_gate = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            q = torch.ops.vsa_compile.gate(self.to_q(tokens), self.to_gate(tokens))

            def attend(q: Tensor, tokens: Tensor) -> Tensor:
                q, k = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (q, tokens))
                return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)

            return checkpoint(attend, q, tokens, use_reentrant=False)

    model, x, graphs = Outside(), latents(GRID), []
    with torch.no_grad():
        assert_same_output(torch.compile(model, backend=converting(graphs))(x), model(x))
        ((refusal,),) = graphs
        assert refusal.reason.slug == "gate-outside"
        torch._dynamo.reset()
        with pytest.raises(vsa_compile.RefusedError, match="outside of the checkpointed function"):
            torch.compile(model, backend="vsa", options=OPTIONS | {"fallback": "error"})(x)


# --- Exported programs --------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_an_exported_program_whose_output_is_attention_runs_in_another_process(tmp_path: Path) -> None:
    model, x, dim = Used(lambda out: (out, out * 2)), latents(GRID), torch.export.Dim
    sizes = {i + 2: dim(name, min=2) for i, name in enumerate(("frames", "rows", "cols"))}
    program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    assert vsa_compile.convert_exported(program, EXACT).converted == 1
    assert [node.target for node in program.graph.nodes].count(SPARSE) == 1
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((x, model(x)), tmp_path / "wanted.pt")
    code = f"""
import torch, vsa_compile
x, wanted = torch.load("{tmp_path}/wanted.pt")
got = torch.export.load("{tmp_path}/program.pt2").module()(x)
for one, other in zip(got, wanted, strict=True):
    torch.testing.assert_close(one, other)
    assert one.stride() == other.stride()
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.quick
def test_bad_options_leave_an_exported_program_as_it_was() -> None:
    program = torch.export.export(Used(lambda out: out), (latents(GRID),))
    before = str(program)
    schedule = vsa_compile.SparsitySchedule(0.5)
    for wrong in ({"sparsty": 0.5}, {"sparsity": 7}, {"sparsity": schedule}, {"inductor": {"no": 1}}):
        with pytest.raises(vsa_compile.OptionError):
            vsa_compile.convert_exported(program, OPTIONS | wrong)
    assert str(program) == before
    now = vsa_compile.convert_exported(copy.deepcopy(program), OPTIONS | {"sparsity": schedule.sparsity})
    assert now.converted == 1
