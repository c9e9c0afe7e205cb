"""The grid that a prepared model learned belongs to the call that runs, whatever others do to the model.

Landscape and portrait have as many tokens: the grid of another call would fit, and give other tiles.
"""

import copy
import io
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from compare import assert_same_output
from soak import soak
from test_prepare import TWO, Spy, by_blocks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy import ToyDiT, inputs

import vsa_compile
from vsa_compile.grid import Hint
from vsa_compile.runtime.calls import running
from vsa_compile.runtime.state import now

LANDSCAPE, PORTRAIT = (3, 10, 6), (3, 6, 10)


def run(model: nn.Module, grid: tuple[int, int, int]) -> Tensor:
    with torch.no_grad():
        return model(*inputs(TWO, grid))


def prepared(spy: Spy | None = None) -> nn.Module:
    return by_blocks(vsa_compile.prepare(ToyDiT(TWO)), spy or Spy())


@pytest.fixture(scope="module")
def wanted() -> dict:
    """What each call gives alone, by a graph that shows the grid; "dense" is what it gives without tiles."""
    torch._dynamo.reset()
    result: dict = {}
    for grid in (LANDSCAPE, PORTRAIT):
        result[grid] = run(torch.compile(ToyDiT(TWO), backend=Spy(), dynamic=False), grid)
        result[grid, "dense"] = run(ToyDiT(TWO), grid)
        assert (result[grid] - result[grid, "dense"]).norm() > 0.01 * result[grid].norm()
    return result


def assert_right(model: nn.Module, wanted: dict) -> None:
    for grid in (LANDSCAPE, PORTRAIT, LANDSCAPE):
        assert_same_output(run(model, grid), wanted[grid])


# --- Forwards that others replace ---------------------------------------------------------------------


@pytest.mark.no_cover
def test_a_model_whose_forward_is_replaced_is_dense_and_says_so(wanted: dict) -> None:
    spy = Spy()
    model = prepared(spy)
    assert_same_output(run(model, LANDSCAPE), wanted[LANDSCAPE])
    own = ToyDiT.forward
    model.forward = lambda *args: own(model, *args)  # as caches do it that skip some calls
    assert_same_output(run(model, PORTRAIT), wanted[PORTRAIT, "dense"])
    assert "unknown-grid" in spy.fates[-1]
    assert_right(vsa_compile.prepare(model), wanted)


def test_a_forward_that_is_there_before_is_kept(wanted: dict) -> None:
    model, seen, own = ToyDiT(TWO), [], ToyDiT.forward
    model.forward = lambda *args: seen.append(1) or own(model, *args)
    vsa_compile.prepare(by_blocks(model, Spy()))
    assert_right(model, wanted)
    assert len(seen) == 3
    vsa_compile.unprepare(model)
    assert_same_output(run(model, PORTRAIT), wanted[PORTRAIT, "dense"])
    assert len(seen) == 4


@pytest.mark.no_cover
def test_a_forward_that_is_patched_in_the_class_is_called(monkeypatch, wanted: dict) -> None:
    model, own = prepared(), ToyDiT.forward
    monkeypatch.setattr(ToyDiT, "forward", lambda self, *args: 2 * own(self, *args))
    for grid in (LANDSCAPE, PORTRAIT):
        assert_same_output(run(model, grid) / 2, wanted[grid])


def test_hooks_of_accelerate_come_and_go(wanted: dict) -> None:
    """As offloading adds them before a call of a pipeline and removes them after it."""
    hooks = pytest.importorskip("accelerate.hooks")
    for before in (True, False):
        model = ToyDiT(TWO)
        if before:
            hooks.add_hook_to_module(model, hooks.ModelHook())
        vsa_compile.prepare(by_blocks(model, Spy()))
        if not before:
            hooks.add_hook_to_module(model, hooks.ModelHook())
        for grid in (LANDSCAPE, PORTRAIT):
            assert_same_output(run(model, grid), wanted[grid])
            hooks.remove_hook_from_module(model)
            assert_same_output(run(model, grid), wanted[grid])
            hooks.add_hook_to_module(model, hooks.ModelHook())


@pytest.mark.no_cover
def test_regions_and_wrappers_of_accelerate(wanted: dict) -> None:
    accelerate = pytest.importorskip("accelerate")
    spy = Spy()
    regions = accelerate.utils.compile_regions(vsa_compile.prepare(ToyDiT(TWO)), backend=spy)
    assert_right(regions, wanted)
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = prepared()
    wrapped = accelerator.prepare(model)
    assert run(wrapped, PORTRAIT).dtype == torch.float32
    plain = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert_right(plain, wanted)


@pytest.mark.no_cover
def test_a_cache_hook_of_diffusers_on_the_blocks(wanted: dict) -> None:
    hooks = pytest.importorskip("diffusers.hooks")

    class Passes(hooks.ModelHook):
        def new_forward(self, module, *args, **kwargs):
            return self.fn_ref.original_forward(*args, **kwargs)

    for before in (True, False):
        model = ToyDiT(TWO)
        add = [partial(hooks.HookRegistry.check_if_exists_or_initialize(x).register_hook, Passes(), "it")
               for x in (model, *model.blocks)]  # fmt: skip
        for one in add if before else ():
            one()
        vsa_compile.prepare(by_blocks(model, Spy()))
        for one in () if before else add:
            one()
        assert_right(model, wanted)


# --- Threads ------------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_threads_have_their_own_grids(wanted: dict) -> None:
    model = prepared()
    assert_right(model, wanted)  # compiled
    start = threading.Barrier(2)

    def work(grid: tuple[int, int, int]) -> list[Tensor]:
        start.wait()
        return [run(model, grid) for _ in range(25)]

    with ThreadPoolExecutor(2) as pool:
        for grid, outs in zip((LANDSCAPE, PORTRAIT), pool.map(work, (LANDSCAPE, PORTRAIT)), strict=True):
            for out in outs:
                assert_same_output(out, wanted[grid])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # loops without steps, which denoising() warns of
def test_four_threads_two_models_and_six_grids_do_not_mix() -> None:
    """As `make fuzz` does for minutes."""
    seen = soak(seconds=0, least=24).seen
    assert seen["sparse"] > 0
    assert seen["dense"] + seen["dense refused"] > 0


def test_a_call_is_nothing_to_other_threads() -> None:
    model, found = prepared(), []

    def elsewhere(*_) -> None:
        found.append((now.hint, running.now.grid))
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(lambda: (now.hint, running.now)).result())

    model.unpatch.register_forward_hook(elsewhere)
    run(model, LANDSCAPE)
    assert found == [(Hint(LANDSCAPE), LANDSCAPE), (None, None)]
    assert now.hint is None


def test_blocks_of_another_prepared_model_are_not_marked(wanted: dict) -> None:
    """Of a model that something bypasses, called while another one runs."""
    outer, inner = prepared(), prepared()
    x = torch.randn(1, 180, 64)
    inner.blocks[0](x, None)
    graphs: list = []
    inner.blocks[0].compile(backend=lambda module, _: graphs.append(module) or module.forward)

    def call_it(*_) -> None:
        inner.blocks[0](x, None)

    outer.unpatch.register_forward_hook(call_it)
    run(outer, LANDSCAPE)
    assert not any("hint" in str(node.target) for module in graphs for node in module.graph.nodes)
    assert graphs


def test_an_error_in_a_call_leaves_nothing_behind() -> None:
    model = prepared()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 4, 4, 4))
    assert running.now is None
    assert not running.entered


# --- Backwards that compute a call again --------------------------------------------------------------


def checkpointed_blocks(model: nn.Module, reentrant: bool) -> None:
    for block in model.blocks:
        call = block._compiled_call_impl
        block._compiled_call_impl = partial(checkpoint, call, use_reentrant=reentrant)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "reentrant", [pytest.param(False, marks=pytest.mark.slow), True], ids=["hooks", "reentrant"]
)
def test_a_backward_recomputes_with_the_grid_of_its_forward(reentrant: bool) -> None:
    """Two calls, another in between, and one backward for both; and each backward alone."""

    def losses(model: nn.Module) -> list[Tensor]:
        found = []
        for grid in (LANDSCAPE, PORTRAIT):
            out = model(*(x.requires_grad_() for x in inputs(TWO, grid)))
            found.append((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum())
        run(model, (2, 5, 7))
        return found

    def gradients(model: nn.Module, together: bool) -> list[Tensor]:
        model.zero_grad()
        first, second = losses(model)
        for loss in [first + second] if together else [first, second]:
            loss.backward()
        assert running.now is None
        return [parameter.grad for parameter in model.parameters()]

    plain, again = prepared(), prepared()
    checkpointed_blocks(again, reentrant)
    exact = gradients(plain, True)
    for together in (True, False):
        for got, one in zip(gradients(again, together), exact, strict=True):
            assert_same_output(got, one, bound=1e-4)


def test_a_backward_that_fails_leaves_no_grid_behind() -> None:
    model = prepared()

    def fail(grad: Tensor) -> None:
        raise ZeroDivisionError

    out = model(*inputs(TWO, LANDSCAPE))
    model.blocks[0].norm.weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    assert running.now is None


# --- Copies, files, undoing ---------------------------------------------------------------------------


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "how",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved],
    ids=["copy", "pickle", "save"],
)
def test_a_copy_is_prepared_apart(how, wanted: dict) -> None:
    model = vsa_compile.prepare(ToyDiT(TWO))
    twin = how(model)
    assert type(twin).__name__ == "ToyDiT"
    assert isinstance(twin, ToyDiT)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert vsa_compile.prepare(twin) is twin
    vsa_compile.unprepare(model)
    assert_right(by_blocks(twin, Spy()), wanted)


def test_unprepare_leaves_the_model_as_it_was(wanted: dict) -> None:
    model, plain = ToyDiT(TWO), ToyDiT(TWO)
    assert vsa_compile.unprepare(model) is model
    assert_right(by_blocks(vsa_compile.prepare(model), Spy()), wanted)
    forward = model.forward  # somebody keeps it
    vsa_compile.unprepare(model)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(one) is type(other)
        assert set(vars(one)) - {"_compiled_call_impl"} == set(vars(other))
        assert not one._forward_hooks
    assert_same_output(run(model, PORTRAIT), wanted[PORTRAIT, "dense"])
    assert_same_output(forward(*inputs(TWO, PORTRAIT)), wanted[PORTRAIT, "dense"])
    assert_right(vsa_compile.prepare(model), wanted)
    with pytest.raises(vsa_compile.ArgumentError, match=r"must be a torch\.nn\.Module"):
        vsa_compile.unprepare(lambda x: x)


# --- What Dynamo cannot capture -----------------------------------------------------------------------


@torch.library.custom_op("vsa_compile_tests::first", mutates_args=())
def first(x: Tensor, count: int) -> Tensor:
    return x[:, :, :count].clone()


@first.register_fake
def _(x: Tensor, count: int) -> Tensor:
    if isinstance(count, torch.SymInt):  # as the complex view says in the rotary code of SkyReels-V2
        raise RuntimeError("Tensor must have a last dimension of size 2")
    return x.new_empty((*x.shape[:2], count, *x.shape[3:]))


class ReadsSizes(nn.Module):
    """Reads a size from a tensor, with which Dynamo fails where it is told to capture it."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = ToyDiT(TWO)

    def forward(self, latents: Tensor, count: Tensor) -> Tensor:
        return self.toy(first(latents, count.item()))


def test_a_model_in_which_capturing_fails_runs_without() -> None:
    plain, model = ReadsSizes(), vsa_compile.prepare(ReadsSizes())
    args = (*inputs(TWO, (5, 6, 7)), torch.tensor(3))
    with (
        torch.no_grad(),
        torch._dynamo.config.patch(capture_scalar_outputs=True),
        pytest.raises(RuntimeError, match="last dimension of size 2"),
    ):
        torch.compile(plain, backend="eager")(*args)
    torch._dynamo.reset()
    spy = Spy(sparsity=1e-6)
    compiled = torch.compile(model, backend=spy)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="the model runs without"):
            got = compiled(*args)
        assert_same_output(got, plain(*args))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert_same_output(compiled(*args), plain(*args))
        assert {fate for graph in spy.fates for fate in graph} == {"sparse"}


def test_frames_that_were_compiled_before_a_failure_do_not_lead_to_it_again() -> None:
    """SkyReels-V2 and V3: the frame that failed resumes one that had been compiled, and cached."""

    def fails_if_captured(module: torch.fx.GraphModule, example_inputs: list) -> object:
        captured = torch._dynamo.config.capture_scalar_outputs

        def run(*args: Tensor) -> object:
            if captured:
                raise torch._dynamo.exc.TorchDynamoException("where it leads")
            return module.forward(*args)

        return run

    model, args = vsa_compile.prepare(ToyDiT(TWO)), inputs(TWO)
    compiled = torch.compile(model, backend=fails_if_captured)
    with torch.no_grad(), pytest.warns(UserWarning, match="Dynamo said: where it leads"):
        got = compiled(*args)
    assert_same_output(got, run(ToyDiT(TWO), (5, 6, 7)))


def test_an_error_of_the_model_itself_is_its_own() -> None:
    model = vsa_compile.prepare(ToyDiT(TWO))
    compiled = torch.compile(model, backend=Spy())
    warned = warnings.catch_warnings(record=True)
    with warned as said, pytest.raises(RuntimeError, match="to have 4 channels"):
        compiled(torch.randn(1, 5, 4, 4, 4))
    assert not said
    assert {fate for graph in spied(model) for fate in graph} == {"sparse"}


def spied(model: nn.Module) -> list:
    spy = Spy()
    with torch.no_grad():
        torch.compile(model, backend=spy)(*inputs(TWO))
    return spy.fates


# --- Rules of users -----------------------------------------------------------------------------------


class Packed(nn.Module):
    """Its tokens come as they are, and their grid in an argument that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = ToyDiT(TWO).blocks

    def forward(self, tokens: Tensor, shape: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, None)
        return tokens


class OfPacked(Packed):
    pass


@pytest.mark.parametrize(
    "rule",
    [
        lambda _, given: given["shape"],
        lambda _, given: vsa_compile.VideoTokens(tuple(given["shape"].tolist()), 0, 180),
    ],
    ids=["grid", "place"],
)
def test_a_rule_of_a_user_is_asked_for_its_class_and_those_below(rule) -> None:
    vsa_compile.register_grid_rule(Packed, rule)
    try:
        spy, model = Spy(), OfPacked()
        by_blocks(vsa_compile.prepare(model), spy)
        for grid in (LANDSCAPE, PORTRAIT):
            with vsa_compile.video_grid(*grid), torch.no_grad():
                x = torch.randn(1, 180, 64, generator=torch.Generator().manual_seed(0))
                torch._dynamo.reset()
                exact = torch.compile(Packed.forward, backend=Spy())(by_blocks(OfPacked(), Spy()), x, None)
            torch._dynamo.reset()
            with torch.no_grad():
                assert_same_output(model(x, torch.tensor(grid)), exact)
        assert {fate for graph in spy.fates for fate in graph} == {"sparse"}
        with pytest.raises(vsa_compile.OptionError, match="grid is"):
            model(x, torch.tensor([3, 0, 60]))
    finally:
        vsa_compile.register_grid_rule(Packed, None)
    with torch.no_grad():
        model(x, torch.tensor(LANDSCAPE))
    assert spy.fates[-1] == ["unknown-grid"]


class Broken(nn.Module):
    """A block in which Dynamo breaks between the marked tokens and the attention call."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: None) -> Tensor:
        x = 2 * x
        torch._dynamo.graph_break()
        return self.block(x, mask)


def test_a_place_that_a_rule_names_reaches_calls_behind_a_break() -> None:
    vsa_compile.register_grid_rule(
        Packed, lambda _, given: vsa_compile.VideoTokens(tuple(given["shape"].tolist()), 7, 187)
    )
    try:
        spy, model = Spy(sparsity=1e-6), Packed()
        model.blocks = nn.ModuleList(Broken(block) for block in model.blocks)
        plain = copy.deepcopy(model)
        by_blocks(vsa_compile.prepare(model), spy)
        x = torch.randn(1, 187, 64, generator=torch.Generator().manual_seed(0))
        for grid in (LANDSCAPE, PORTRAIT):
            with torch.no_grad():
                assert_same_output(model(x, torch.tensor(grid)), plain(x, None))
    finally:
        vsa_compile.register_grid_rule(Packed, None)
    assert spy.fates == [["sparse"]] * len(spy.fates)
    assert set(spy.places) == {(7, 7)}


def test_rules_that_are_none_are_errors() -> None:
    with pytest.raises(vsa_compile.ArgumentError, match=r"must be a class of torch\.nn\.Module"):
        vsa_compile.register_grid_rule(Packed(), lambda *_: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(vsa_compile.ArgumentError, match="must be a function"):
        vsa_compile.register_grid_rule(Packed, (3, 4, 5))  # pyright: ignore[reportArgumentType]


# --- Classes ------------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_a_forward_that_is_assigned_to_the_class_of_the_model(wanted: dict) -> None:
    """As caches of steps do it: `pipe.transformer.__class__.forward = ...`."""
    model, own, seen = prepared(), ToyDiT.forward, []
    type(model).forward = lambda self, *args: seen.append(1) or own(self, *args)
    assert_same_output(run(model, PORTRAIT), wanted[PORTRAIT, "dense"])
    assert_right(vsa_compile.prepare(model), wanted)
    vsa_compile.unprepare(model)
    assert_same_output(run(model, PORTRAIT), wanted[PORTRAIT, "dense"])
    assert len(seen) == 5
    assert ToyDiT.forward is own


def test_a_model_in_a_model_may_be_prepared_often() -> None:
    outer, plain = nn.Sequential(ToyDiT(TWO)), ToyDiT(TWO)
    for _ in range(3):
        vsa_compile.prepare(outer)
        vsa_compile.prepare(outer[0])
    assert len(type(outer[0].blocks[0]).__mro__) <= len(type(plain.blocks[0]).__mro__) + 3
    vsa_compile.unprepare(vsa_compile.unprepare(outer)[0])
    for one, other in zip(outer[0].modules(), plain.modules(), strict=True):
        assert type(one) is type(other)


def test_classes_that_register_what_is_made_of_them_hear_of_nothing() -> None:
    known: list[type] = []

    class Registers(ToyDiT):
        def __init_subclass__(cls, **_) -> None:
            known.append(cls)

    class Model(Registers):
        pass

    vsa_compile.prepare(Model(TWO))
    assert known == [Model]


def test_caches_of_diffusers_know_prepared_blocks() -> None:
    hooks = pytest.importorskip("diffusers.hooks._helpers")
    from zoo.wan import wan

    (model, _), metadata = wan(), hooks.TransformerBlockRegistry
    plain = metadata.get(type(model.blocks[0]))
    for _ in range(2):  # once more, of a class that is made of the first
        block = type(vsa_compile.prepare(model).blocks[0])
        model = copy.deepcopy(model)
        assert metadata.get(block).return_hidden_states_index == plain.return_hidden_states_index
        assert metadata.get(block)._get_parameter_from_args_kwargs("temb", (1, 2, 3, 4)) == 3
