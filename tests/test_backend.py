"""One call of the backend: its node, counters, logs, fallbacks and errors, and the other modes of running.

Spellings are in test_spellings.py, several calls in test_compiler.py, caches in test_cache.py.
"""

import logging
import subprocess
import sys
from unittest import mock

import pytest
import torch
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from torch._dynamo.utils import counters
from toy import Habits, ToyDiT, inputs

import vsa_compile

ALL = {"min_tokens": 0, "sparsity": 0.5}
JOINT = Habits(text="after", mask=True)


def compiled(model, backend="vsa", **options):
    keywords = {key: options.pop(key) for key in ("dynamic", "fullgraph") if key in options}
    return torch.compile(model, backend=backend, options=ALL | options, **keywords)


def captured_nodes(model, args, **options):
    """The targets of the graph that is handed to Inductor."""
    seen = []
    torch._dynamo.reset()  # equal options share compiled code, and then no backend is called

    def stop(module, example_inputs, patches):
        seen.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    with mock.patch("vsa_compile.torch_compat.compile_with_inductor", stop), torch.no_grad():
        compiled(model, **options)(*args)
    return seen


def test_one_node_takes_the_place_of_one_node():
    nodes = captured_nodes(ToyDiT(JOINT), inputs(JOINT))
    assert nodes.count(torch.ops.vsa_compile.attention.default) == 1
    assert torch.nn.functional.scaled_dot_product_attention not in nodes


@pytest.mark.seconds
@pytest.mark.quick
def test_the_backend_object_and_its_name_are_the_same():
    args = inputs(Habits())
    assert captured_nodes(ToyDiT(), args, backend=vsa_compile.vsa) == captured_nodes(ToyDiT(), args)


@pytest.mark.quick
def test_the_meta_of_the_node_is_kept_and_its_strides_are_token_major():
    kept = {}

    def spy(module, example_inputs):
        vsa_compile.backend.convert(module, vsa_compile.Options.read(ALL))
        (node,) = (n for n in module.graph.nodes if n.target is torch.ops.vsa_compile.attention.default)
        kept.update(node.meta)
        return module.forward

    model, args = ToyDiT(), inputs(Habits())
    with torch.no_grad():
        torch.compile(model, backend=spy)(*args)
    assert "nn_module_stack" in kept
    assert "stack_trace" in kept
    assert kept["example_value"].shape == (2, 4, 210, 16)
    assert kept["example_value"].transpose(1, 2).is_contiguous()


@pytest.mark.quick
def test_converting_twice_changes_nothing_more():
    decisions = []

    def spy(module, example_inputs):
        settings = vsa_compile.Options.read(ALL)
        for _ in range(2):
            decisions.append(vsa_compile.backend.convert(module, settings))
        return module.forward

    with torch.no_grad():
        torch.compile(ToyDiT(), backend=spy)(*inputs(Habits()))
    assert [len(found) for found in decisions] == [1, 0]


@pytest.mark.seconds
@pytest.mark.quick
def test_counters_and_log_say_what_was_done(caplog):
    model = torch.nn.Sequential(ToyDiT(JOINT))
    with caplog.at_level(logging.DEBUG, logger="vsa_compile"):
        captured_nodes(ToyDiT(JOINT), inputs(JOINT))
        captured_nodes(ToyDiT(Habits(causal=True)), inputs(Habits()))
    assert counters["vsa_compile"] == {"converted": 1, "refused": 1, "refused.causal": 1}
    assert "1 of 1 attention calls made sparse, through the C++ kernel for" in caplog.text
    assert "0 of 1 attention calls made sparse\n" in caplog.text
    assert "blocks.0.attn: sparse, [video 5x6x7 | other 9]" in caplog.text
    assert "blocks.0.attn: dense, [video 5x6x7], causal: is_causal is set" in caplog.text
    del model


@pytest.mark.quick
def test_fallback_error_raises_for_video_attention_and_lets_the_rest_pass():
    habits = Habits(causal=True)
    with pytest.raises(vsa_compile.RefusedError, match=r"^blocks.0.attn stays dense: is_causal is set"):
        captured_nodes(ToyDiT(habits), inputs(habits), fallback="error")

    def cross(x, y):
        return torch.nn.functional.scaled_dot_product_attention(x, y, y)

    captured_nodes(cross, (torch.randn(1, 2, 24, 16), torch.randn(1, 2, 9, 16)), fallback="error")


@pytest.mark.parametrize("step", ["analyse", "judge", "plan", "apply"])
def test_a_failure_of_our_own_is_logged_and_leaves_the_model_working(step, monkeypatch):
    logged = []
    monkeypatch.setattr(vsa_compile.backend, step, lambda *_, **__: 1 / 0)
    monkeypatch.setattr(vsa_compile.backend.log, "exception", lambda *message: logged.append(message))
    nodes = captured_nodes(ToyDiT(), inputs(Habits()))
    assert torch.nn.functional.scaled_dot_product_attention in nodes
    assert counters["vsa_compile"] == {"failed": 1}
    assert "please report it" in logged[0][1]
    with pytest.raises(vsa_compile.RefusedError, match=r"failed .ZeroDivisionError: .* please report it"):
        captured_nodes(ToyDiT(), inputs(Habits()), fallback="error")


# --- errors and options ---------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("backend", ["vsa", vsa_compile.vsa], ids=["name", "object"])
@pytest.mark.parametrize(
    "wrong", [{"sparsty": 0.5}, {"inductor": {"max_autotun": True}}, {"mode": "fastest"}]
)
def test_a_wrong_option_is_an_error_of_torch_compile_itself(backend, wrong):
    with pytest.raises(vsa_compile.OptionError):
        torch.compile(ToyDiT(), backend=backend, options=wrong)
    with pytest.raises(vsa_compile.OptionError):
        ToyDiT().compile(backend=backend, options=wrong)


def test_another_backends_options_are_not_ours():
    torch.compile(ToyDiT(), backend="inductor", options={"max_autotune": False})
    torch.compile(ToyDiT(), backend=lambda module, inputs, **_: module, options={"sparsty": 0.5})


def test_options_that_a_backend_brings_along():
    args = inputs(Habits())
    backend = vsa_compile.vsa.with_options(sparsity=0.5, min_tokens=0, tile=[2, 2, 2])
    assert backend == vsa_compile.vsa.with_options(tile=(2, 2, 2), min_tokens=0, sparsity=0.5)
    assert backend != vsa_compile.vsa.with_options(sparsity=0.25, min_tokens=0)
    assert torch._dynamo.lookup_backend("vsa") == vsa_compile.vsa != backend
    with mock.patch("vsa_compile.torch_compat.compile_with_inductor", lambda module, *_: module.forward):
        torch.compile(ToyDiT(), backend=backend)(*args)
    assert counters["vsa_compile"] == {"converted": 1}
    with pytest.raises(vsa_compile.OptionError, match="did you mean 'sparsity'"):
        vsa_compile.vsa.with_options(sparsty=0.5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(vsa_compile.OptionError, match="sparsity is 7"):
        vsa_compile.vsa.with_options(sparsity=7)
    with pytest.raises(vsa_compile.OptionError, match=r"given to vsa.with_options"):
        torch.compile(ToyDiT(), backend=backend, options={"sparsity": 0.5})


@pytest.mark.parametrize("inner", [False, True], ids=["lowering", "backend"])
def test_an_error_of_ours_reaches_the_caller_as_it_is(inner, monkeypatch):
    """Also one that Inductor has packed into its own."""
    ours = vsa_compile.ArgumentError("no such thing")

    def fail(*_):
        if inner:
            raise ours
        raise torch._inductor.exc.InductorError(ours, None)

    monkeypatch.setattr("vsa_compile.torch_compat.compile_with_inductor", fail)
    for model in (ToyDiT(), torch.nn.Sequential(torch.compile(ToyDiT()))):
        torch._dynamo.reset()
        with pytest.raises(vsa_compile.ArgumentError) as error:
            torch.compile(model, backend="vsa")(*inputs(Habits()))
        assert error.value is ours
    with pytest.raises(vsa_compile.ArgumentError):
        vsa_compile.vsa(torch.fx.symbolic_trace(torch.nn.Identity()), [])


@pytest.mark.quick
def test_an_error_of_anyone_else_is_torchs_to_report(monkeypatch):
    monkeypatch.setattr("vsa_compile.torch_compat.compile_with_inductor", lambda *_: 1 / 0)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="ZeroDivisionError"):
        torch.compile(ToyDiT(), backend="vsa")(*inputs(Habits()))


@pytest.mark.no_cover
def test_nothing_to_convert_is_exactly_inductor():
    """Same key as backend="inductor": the second compilation finds the first one's cache entry."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    x = torch.randn(4, 8)
    with torch._inductor.utils.fresh_cache(), torch.no_grad():
        wanted = torch.compile(model, backend="inductor")(x)
        torch._dynamo.reset()
        counters.clear()
        assert torch.equal(torch.compile(model, backend="vsa")(x), wanted)
        assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert not counters["vsa_compile"]


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("habits", "sparsity"),
    [
        pytest.param(Habits(fused=True, spelling="positional", scale=0.3), 1e-6, marks=pytest.mark.slow),
        pytest.param(Habits(text="before", mask=True, groups=2), 1e-6, marks=pytest.mark.slow),
        (Habits(text="after", mask=True, checkpointed=True, blocks=2), 1e-6),
        pytest.param(Habits(text="after", mask=True, checkpointed=True, blocks=2), 0, marks=pytest.mark.slow),
    ],
    ids=["fused", "before", "checkpointed", "checkpointed-0"],
)
def test_all_tiles_kept_equals_eager_with_gradients(habits, sparsity):
    model, args = ToyDiT(habits), inputs(habits)
    wanted, wanted_grads = output_and_gradients(model, *args)
    got, got_grads = output_and_gradients(compiled(model, sparsity=sparsity, fullgraph=True), *args)
    assert counters["vsa_compile"]["converted"] == habits.blocks
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


@pytest.mark.no_cover
def test_inference_mode_equals_no_grad():
    model, args = ToyDiT(JOINT), inputs(JOINT)
    sparse = compiled(model)
    with torch.no_grad():
        wanted = sparse(*args)
    with torch.inference_mode():
        assert_same_output(sparse(*args), wanted)


@pytest.mark.no_cover
def test_autocast_computes_as_sdpa_does_under_it():
    model, args = ToyDiT(JOINT), inputs(JOINT)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(*args)
        got = compiled(model, sparsity=1e-6)(*args)
    assert got.dtype == wanted.dtype
    exact = model(*args).detach()
    assert (got - exact).norm() <= 2 * (wanted.float() - exact).norm()


@pytest.mark.slow
def test_an_exported_program_becomes_sparse_and_runs_in_aoti(tmp_path):
    model, args = ToyDiT(JOINT).eval(), inputs(JOINT)
    with torch.no_grad():
        wanted = compiled(model)(*args)
        program = torch.export.export(model, args)
        report = vsa_compile.convert_exported(program, ALL)
        assert_same_output(program.module()(*args), wanted)
        # AOTInductor writes into a setting of Inductor's, which is part of every cache key.
        with torch._inductor.config.patch({"aot_inductor.metadata": {}}):
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / "toy.pt2")
            )
        assert_same_output(torch._inductor.aoti_load_package(package)(*args), wanted)
    assert report.converted == 1
    assert report.sites[0].grid == (5, 6, 7)


@pytest.mark.seconds
@pytest.mark.quick
def test_an_exported_program_with_symbolic_sizes_becomes_sparse():
    habits = Habits()
    model, dim = ToyDiT(habits).eval(), torch.export.Dim
    shapes = ({2: dim("frames", min=2), 3: 2 * dim("rows", min=2), 4: 2 * dim("cols", min=2)},)
    with torch.no_grad():
        program = torch.export.export(model, inputs(habits), dynamic_shapes=shapes)
        assert vsa_compile.convert_exported(program, ALL | {"sparsity": 1e-6}).converted == 1
        assert torch.ops.vsa_compile.attention.default in [node.target for node in program.graph.nodes]
        for grid in [(5, 6, 7), (5, 7, 6), (3, 4, 9)]:
            args = inputs(habits, grid)
            assert_same_output(program.module()(*args), model(*args))


# --- what is there and what is not --------------------------------------------------------------------


def test_nothing_needs_triton_or_matplotlib() -> None:
    """Imports of both fail, as where they are not installed; nothing is logged about it on CPU."""
    code = """
import sys
sys.modules["triton"] = sys.modules["matplotlib"] = None
import logging, torch
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
logging.getLogger("vsa_compile.cpu").setLevel(logging.ERROR)  # says that it compiles the kernel, once
import torch.nn.functional as F
def attend(x):
    tokens = x.flatten(2).transpose(1, 2)[:, None]
    return F.scaled_dot_product_attention(tokens, tokens, tokens)
x = torch.linspace(-3, 3, 512).sin().reshape(1, 2, 4, 4, 16).permute(0, 4, 1, 2, 3)
options = {"min_tokens": 0, "sparsity": 1e-6, "tile": (2, 2, 2)}
with torch.no_grad():
    out = torch.compile(attend, backend="vsa", options=options)(x)
torch.testing.assert_close(out, attend(x))
assert torch._dynamo.utils.counters["vsa_compile"] == {"converted": 1}
assert not [name for name in sys.modules if name.startswith(("triton", "matplotlib")) and sys.modules[name]]
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "vsa_compile" not in shown.stdout


@pytest.mark.no_cover
def test_generated_code_computes_in_fp32_for_fp32() -> None:
    """Scalars are pinned: a Python float must not make a kernel of Inductor's compute in fp64."""
    with torch.no_grad():
        _, code = torch._inductor.utils.run_and_get_code(compiled(ToyDiT()), *inputs(Habits()))
    kernels = [text for text in code if "float" in text]
    assert kernels
    assert not any("double" in text or "float64" in text for text in kernels)
