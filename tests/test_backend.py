"""The backend as torch.compile sees it: caches, counters, logs, resets, fallbacks, other modes of running."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from torch._dynamo.utils import counters
from toy import Habits, ToyDiT, inputs

import vsa_compile

ROOT = Path(__file__).parents[1]
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


@pytest.mark.quick
def test_one_node_takes_the_place_of_one_node():
    nodes = captured_nodes(ToyDiT(JOINT), inputs(JOINT))
    assert nodes.count(torch.ops.vsa.attention.default) == 1
    assert torch.nn.functional.scaled_dot_product_attention not in nodes


@pytest.mark.quick
def test_the_backend_object_and_its_name_are_the_same():
    args = inputs(Habits())
    assert captured_nodes(ToyDiT(), args, backend=vsa_compile.vsa) == captured_nodes(ToyDiT(), args)


@pytest.mark.quick
def test_the_meta_of_the_node_is_kept_and_its_strides_are_token_major():
    kept = {}

    def spy(module, example_inputs):
        vsa_compile.backend.convert(module, vsa_compile.Options.read(ALL))
        (node,) = (n for n in module.graph.nodes if n.target is torch.ops.vsa.attention.default)
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


@pytest.mark.quick
def test_counters_and_log_say_what_was_done(caplog):
    model = torch.nn.Sequential(ToyDiT(JOINT))
    with caplog.at_level(logging.DEBUG, logger="vsa_compile"):
        captured_nodes(ToyDiT(JOINT), inputs(JOINT))
        captured_nodes(ToyDiT(Habits(causal=True)), inputs(Habits()))
    assert counters["vsa_compile"] == {"converted": 1, "refused": 1, "refused.causal": 1}
    assert "1 of 1 attention calls made sparse" in caplog.text
    assert "blocks.0.attn: sparse, [video 5x6x7 | other 9]" in caplog.text
    assert "blocks.0.attn: dense, [video 5x6x7], causal: is_causal is set" in caplog.text
    del model


@pytest.mark.quick
def test_fallback_error_raises_for_video_attention_and_lets_the_rest_pass():
    habits = Habits(causal=True)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        captured_nodes(ToyDiT(habits), inputs(habits), fallback="error")
    assert isinstance(error.value.inner_exception, vsa_compile.RefusedError)
    assert "blocks.0.attn stays dense: is_causal is set" in str(error.value)

    def cross(x, y):
        return torch.nn.functional.scaled_dot_product_attention(x, y, y)

    captured_nodes(cross, (torch.randn(1, 2, 24, 16), torch.randn(1, 2, 9, 16)), fallback="error")


@pytest.mark.quick
def test_an_unknown_option_is_an_error_before_anything_is_compiled():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="did you mean 'sparsity'"):
        captured_nodes(ToyDiT(), inputs(Habits()), sparsty=0.5)


@pytest.mark.quick
def test_few_tokens_become_a_guard_on_symbolic_shapes():
    model, compiles = ToyDiT(), []

    def spy(module, example_inputs, **_):
        found = vsa_compile.backend.convert(module, vsa_compile.Options.read({"min_tokens": 100}))
        compiles.append([type(decision).__name__ for decision in found])
        return module.forward

    symbolic = torch.compile(model, backend=spy, dynamic=True)
    with torch.no_grad():
        for grid in [(5, 6, 7), (4, 6, 7), (2, 3, 4), (3, 3, 4), (6, 6, 6)]:
            symbolic(*inputs(Habits(), grid))
    assert compiles == [["Site"], ["Refusal"]]


@pytest.mark.quick
def test_twelve_resolutions_need_at_most_two_graphs():
    compiles = []

    def spy(module, example_inputs, **_):
        vsa_compile.backend.convert(module, vsa_compile.Options.read({"min_tokens": 0}))
        compiles.append(module)
        return module.forward

    model = torch.compile(ToyDiT(), backend=spy)
    with torch.no_grad():
        for grid in [(3 + i % 4, 4 + i % 5, 9 - i % 3) for i in range(12)]:
            model(*inputs(Habits(), grid))
    assert len(compiles) <= 2


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


@pytest.mark.parametrize("sparsity", [0, 1e-6])
@pytest.mark.parametrize(
    "habits",
    [
        Habits(fused=True, spelling="positional", scale=0.3),
        Habits(text="before", mask=True, groups=2),
        Habits(text="after", mask=True, checkpointed=True, blocks=2),
    ],
    ids=["fused", "before", "checkpointed"],
)
def test_all_tiles_kept_equals_eager_with_gradients(habits, sparsity):
    model, args = ToyDiT(habits), inputs(habits)
    wanted, wanted_grads = output_and_gradients(model, *args)
    got, got_grads = output_and_gradients(compiled(model, sparsity=sparsity, fullgraph=True), *args)
    assert counters["vsa_compile"]["converted"] == habits.blocks
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


def test_checkpointing_recomputes_the_same_selection():
    plain, recomputed = (Habits(blocks=2, checkpointed=checkpointed) for checkpointed in (False, True))
    args = inputs(plain)
    wanted, wanted_grads = output_and_gradients(compiled(ToyDiT(plain)), *args)
    got, got_grads = output_and_gradients(compiled(ToyDiT(recomputed)), *args)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads, bound=1e-5)


def test_inference_mode_equals_no_grad():
    model, args = ToyDiT(JOINT), inputs(JOINT)
    sparse = compiled(model)
    with torch.no_grad():
        wanted = sparse(*args)
    with torch.inference_mode():
        assert_same_output(sparse(*args), wanted)


def test_autocast_computes_as_sdpa_does_under_it():
    model, args = ToyDiT(JOINT), inputs(JOINT)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(*args)
        got = compiled(model, sparsity=1e-6)(*args)
    assert got.dtype == wanted.dtype
    exact = model(*args).detach()
    assert (got - exact).norm() <= 2 * (wanted.float() - exact).norm()


def test_an_exported_program_becomes_sparse_and_runs_in_aoti(tmp_path):
    model, args = ToyDiT(JOINT).eval(), inputs(JOINT)
    with torch.no_grad():
        wanted = compiled(model)(*args)
        program = torch.export.export(model, args)
        report = vsa_compile.convert_exported(program, ALL)
        assert_same_output(program.module()(*args), wanted)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "toy.pt2"))
        assert_same_output(torch._inductor.aoti_load_package(package)(*args), wanted)
    assert report.converted == 1
    assert report.sites[0].grid == (5, 6, 7)


@pytest.mark.quick
def test_an_exported_program_with_symbolic_sizes_becomes_sparse():
    habits = Habits()
    model, dim = ToyDiT(habits).eval(), torch.export.Dim
    shapes = ({2: dim("frames", min=2), 3: 2 * dim("rows", min=2), 4: 2 * dim("cols", min=2)},)
    with torch.no_grad():
        program = torch.export.export(model, inputs(habits), dynamic_shapes=shapes)
        assert vsa_compile.convert_exported(program, ALL | {"sparsity": 1e-6}).converted == 1
        for grid in [(5, 6, 7), (5, 7, 6), (3, 4, 9)]:
            args = inputs(habits, grid)
            assert_same_output(program.module()(*args), model(*args))


SECOND_PROCESS = """
import json, sys, torch
sys.path[:0] = {paths!r}
from toy import Habits, ToyDiT, inputs
habits = Habits()
model = torch.compile(ToyDiT(habits), backend="vsa", options={options!r})
out = model(*inputs(habits))
out.sum().backward()
found = torch._dynamo.utils.counters["aot_autograd"]
print(json.dumps([found["autograd_cache_hit"], found["autograd_cache_miss"], float(out.double().sum())]))
"""


def run_with_cache(cache, package_root=ROOT, **options):
    """(hits, misses, checksum) of a compile in a process of its own, on a cache folder."""
    code = SECOND_PROCESS.format(paths=[str(package_root), str(ROOT / "tests")], options=ALL | options)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(package_root)}
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return tuple(json.loads(shown.stdout.splitlines()[-1]))


def test_a_second_process_hits_the_cache_and_every_change_misses_it(tmp_path):
    cache, copy = tmp_path / "cache", tmp_path / "copy"
    first = run_with_cache(cache)
    assert first[:2] == (0, 1)
    assert run_with_cache(cache) == (1, 0, first[2])
    assert run_with_cache(cache, sparsity=0.75)[:2] == (0, 1)

    shutil.copytree(ROOT / "vsa_compile", copy / "vsa_compile")
    shutil.copytree(ROOT / "templates", copy / "templates")
    for changed in (
        "templates/attend_fwd.py.jinja",
        "vsa_compile/methods/vsa.py",
        "vsa_compile/cpu/kernel.cpp",
    ):
        path = copy / changed
        original = path.read_text()
        comment = {".py": "\n# changed\n", ".cpp": "\n// changed\n"}.get(path.suffix, "\n{# changed #}\n")
        path.write_text(original + comment)
        assert run_with_cache(cache, copy)[:2] == (0, 1), changed
        path.write_text(original)


def test_reset_leaves_nothing_behind():
    model, args = ToyDiT(), inputs(Habits())
    with torch.no_grad():
        first = compiled(model)(*args)
        torch._dynamo.reset()
        counters.clear()
        assert_same_output(compiled(model, sparsity=1e-6)(*args), model(*args))
        torch._dynamo.reset()
        assert torch.equal(compiled(model)(*args), first)
    assert counters["vsa_compile"]["converted"] == 2
