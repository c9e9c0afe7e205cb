"""The command line: what explain prints, as a table and as JSON, and one line for whatever is wrong."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.__main__ import main
from vsa_compile.ops.cpu import loader

HABITS = Habits(text="after", blocks=2)
OPTIONS = {"min_tokens": 0, "sparsity": 0.5, "tile": [4, 4, 4], "dense_layers": [1]}
SITE = {
    "name": str,
    "converted": bool,
    "reason": str,
    "slug": str,
    "grid": list | None,
    "segments": list,
    "tokens": int,
    "kept_tiles": int,
    "total_tiles": int,
    "flops_dense": int,
    "flops_sparse": int,
    "kernel": str,
}


# --- Factories, found as test_main:... ----------------------------------------------------------------


def positional():
    return ToyDiT(HABITS), inputs(HABITS)


def keywords():
    print("a factory may print")
    return ToyDiT(HABITS), dict(zip(("latents", "text"), inputs(HABITS), strict=True))


def both():
    latents, text = inputs(HABITS)
    return ToyDiT(HABITS), (latents,), {"text": text}


class Zoo:
    positional = staticmethod(positional)


def nothing():
    return None


def a_list():
    return ToyDiT(HABITS), [torch.zeros(1)]


def four():
    return ToyDiT(HABITS), (), {}, {}


def no_model():
    return "ToyDiT", ()


def failing():
    raise RuntimeError("no weights here")


# --- What is printed ----------------------------------------------------------------------------------


def command(*flags: str, factory: str = "test_main:positional") -> list[str]:
    return ["explain", factory, "--options", json.dumps(OPTIONS), *flags]


@pytest.mark.no_cover
@pytest.mark.parametrize("factory", ["positional", "keywords", "both", "Zoo.positional"])
def test_explain_prints_the_table_that_the_function_gives(factory, capsys):
    assert main(command(factory=f"test_main:{factory}")) == 0
    printed = capsys.readouterr()
    found = vsa_compile.explain(ToyDiT(HABITS), *inputs(HABITS), options=OPTIONS)
    assert [site.slug for site in found.sites] == ["", "dense-layer"]
    assert printed.out.removeprefix("a factory may print\n") == f"{found}\n"
    assert not printed.err


@pytest.mark.quick
def test_json_has_one_object_for_each_call_and_nothing_else_on_stdout(capsys):
    assert main(command("--json", factory="test_main:keywords")) == 0
    printed = capsys.readouterr()
    assert printed.err == "a factory may print\n"
    data = json.loads(printed.out)
    assert list(data) == ["options", "totals", "sites"]
    assert {key: data["options"][key] for key in OPTIONS} == OPTIONS
    for site in data["sites"]:
        assert site.keys() == SITE.keys()
        assert all(isinstance(site[key], kind) for key, kind in SITE.items())
    dense = 4 * 2 * 4 * 16 * 219 * 219
    sparse = 4 * 2 * 4 * 16 * (210 * 105 + 210 * 9 + 9 * 219)
    assert data["totals"] == {
        "converted": 1, "refused": 1, "flops_dense": 2 * dense, "flops_sparse": dense + sparse,
    }  # fmt: skip
    converted, refused = data["sites"]
    assert converted == {
        "name": "blocks.0.attn", "converted": True, "reason": "", "slug": "", "grid": [5, 6, 7],
        "segments": ["video 5x6x7", "other 9"], "tokens": 219, "kept_tiles": 4, "total_tiles": 8,
        "flops_dense": dense, "flops_sparse": sparse,
        "kernel": f"the C++ kernel for {loader.variants()[0]} in float32",
    }  # fmt: skip
    assert refused == converted | {
        "name": "blocks.1.attn", "converted": False, "slug": "dense-layer", "grid": None,
        "reason": "block 1 is listed in dense_layers", "kept_tiles": 0, "total_tiles": 0,
        "flops_sparse": dense, "kernel": "",
    }  # fmt: skip


def test_without_arguments_it_prints_help(capsys):
    assert main([]) == 0
    assert "explain" in capsys.readouterr().out


def test_from_the_shell_it_finds_modules_of_the_current_directory(tmp_path):
    source = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from test_main import both"
    (tmp_path / "mine.py").write_text(source)
    shell = [sys.executable, "-W", "error", "-m", "vsa_compile", *command("--json", factory="mine:both")]
    found = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["totals"]["converted"] == 1


def test_the_shell_gets_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vsa_compile", "explain", "test_main:bath"])
    monkeypatch.delitem(sys.modules, "vsa_compile.__main__")
    with pytest.raises(SystemExit) as exited:
        runpy.run_module("vsa_compile", run_name="__main__")
    assert exited.value.code == 2
    expected = "python -m vsa_compile: test_main:bath has no 'bath'; did you mean 'both'?\n"
    assert capsys.readouterr() == ("", expected)


# --- What is wrong ------------------------------------------------------------------------------------

MUST = "but it must be module:factory, a callable"
WRONG = {
    "no colon": ("test_main", f"the factory is 'test_main', {MUST}"),
    "no module": ("test_mian:both", "there is no module 'test_mian' in "),
    "no package": ("nowhere.models:both", "there is no module 'nowhere.models' in "),
    "no submodule": ("toy.models:both", "there is no module 'toy.models' in "),
    "a path": ("tests/test_main.py:both", "dots for slashes, and no .py."),
    "no attribute": ("test_main:keyword", "no 'keyword'; did you mean 'keywords'?"),
    "nothing alike": ("test_main:xyz", "no 'xyz'; it must be module:factory, a callable"),
    "not callable": ("test_main:MUST", MUST),
    "None": ("test_main:nothing", "test_main:nothing returned NoneType, but it must return (model, "),
    "a list": ("test_main:a_list", "returned (ToyDiT, list), but it must return (model, "),
    "four": ("test_main:four", "returned (ToyDiT, tuple, dict, dict), but it must return"),
    "no model": ("test_main:no_model", "(str, tuple), but it must return"),
    "not JSON": ("x:y --options {sparsity:0.9}", "--options is '{sparsity:0.9}', but it must be a JSON"),
    "no object": ("x:y --options 0.9", "options is 0.9, but it must be a dict."),
    "unknown option": ('x:y --options {"sparsty":0.9}', "did you mean 'sparsity'?"),
    "bad option": ('x:y --options {"sparsity":9}', "sparsity is 9, but it must be a number"),
    "unknown method": ('x:y --options {"method":"vsb"}', "did you mean 'vsa'?"),
    "unknown mode": ('x:y --options {"mode":"max"}', "Unrecognized mode=max"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_status_2(case, capsys):
    arguments, text = WRONG[case]
    assert main(["explain", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("python -m vsa_compile: ")
    assert text in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("\n")


@pytest.mark.quick
@pytest.mark.parametrize("arguments", [["explane"], ["explain"], ["explain", "a:b", "--jsn"], ["--verbose"]])
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_the_users_code_raises_is_not_hidden(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="no weights here"):
        main(["explain", "test_main:failing"])
    (tmp_path / "needs_another.py").write_text("import no_such_module_anywhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        main(["explain", "needs_another:build"])
    assert str(tmp_path) not in sys.path


# --- One row for each attention call, whatever Dynamo makes of the model ------------------------------


class InTwo(ToyDiT):
    """Breaks its graph behind the first block; what follows does not see where its tokens come from."""

    def forward(self, latents):
        x = self.patch(latents).flatten(2).transpose(1, 2)
        x = self.blocks[0](x, None)
        torch._dynamo.graph_break()
        return self.blocks[2](self.blocks[1](x, None), None)


class InALoop(ToyDiT):
    """Dynamo gives up functions that break in a loop, and takes the blocks one by one."""

    def forward(self, latents):
        x = self.patch(latents).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, None)
            torch._dynamo.graph_break()
        return x


class OneEagerly(ToyDiT):
    """The second block is in no graph; the first and the last are."""

    @torch._dynamo.disable
    def eager(self, x):
        return self.blocks[1](x, None)

    def forward(self, latents):
        x = self.patch(latents).flatten(2).transpose(1, 2)
        return self.blocks[2](self.eager(self.blocks[0](x, None)), None)


class OnlyTheLast(ToyDiT):
    """Dynamo leaves the model's own function alone, and takes the module that it calls."""

    @torch._dynamo.disable(recursive=False)
    def forward(self, latents):
        x = self.patch(latents).flatten(2).transpose(1, 2)
        tokens = x.unflatten(-1, (4, -1)).transpose(1, 2)
        seen = F.scaled_dot_product_attention(tokens, key=tokens, value=tokens)
        return self.blocks[2](x + seen.transpose(1, 2).flatten(2), None)


BROKEN = {
    InTwo: {"blocks.0.attn": "", "blocks.1.attn": "unknown-grid", "blocks.2.attn": "unknown-grid"},
    InALoop: dict.fromkeys(("blocks.0.attn", "blocks.1.attn", "blocks.2.attn"), "unknown-grid"),
    OneEagerly: {"blocks.0.attn": "", "blocks.1.attn": "not-captured", "blocks.2.attn": "unknown-grid"},
    OnlyTheLast: {"": "not-captured", "blocks.2.attn": "unknown-grid"},
}


@pytest.mark.no_cover
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_broken_graph_has_one_row_for_each_call(broken, wrapped):
    habits = Habits(blocks=3)
    model, args = broken(habits), inputs(habits)
    for _ in range(2):  # the second time Dynamo has the graphs already
        called = torch.compile(model, backend="eager") if wrapped else model
        sites = vsa_compile.explain(called, *args, options={"min_tokens": 0}).sites
        assert {site.name: site.slug for site in sites} == BROKEN[broken]
        assert len(sites) == len(BROKEN[broken])
        for site in sites:
            assert site.converted == (site.grid == (5, 6, 7)) == (site.flops_sparse < site.flops_dense)
            assert bool(site.reason) != site.converted
            assert site.flops_dense == 4 * 2 * 4 * 16 * 210 * 210


def test_a_broken_function_has_one_row_for_each_call():
    habits = Habits(blocks=3)
    model = InTwo(habits)
    sites = vsa_compile.explain(lambda x: model(x), *inputs(habits), options={"min_tokens": 0}).sites
    assert [site.slug for site in sites] == ["", "unknown-grid", "unknown-grid"]


def test_a_model_of_one_graph_is_run_once(monkeypatch):
    monkeypatch.delattr("vsa_compile.report.explain._Census")  # what the second run is made of
    habits = Habits()
    model, args = ToyDiT(habits), inputs(habits)
    for whole in (model, torch.compile(model, backend="eager"), model.forward, lambda x: model(x)):
        assert vsa_compile.explain(whole, *args, options={"min_tokens": 0}).converted == 1
    with pytest.raises(NameError):
        vsa_compile.explain(InTwo(Habits(blocks=3)), *args)


def attend(latents: torch.Tensor) -> torch.Tensor:
    x = latents.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)
    return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("given", ["options", "with_options"])
def test_a_compiled_model_is_explained_with_its_own_options(given: str):
    options = {"min_tokens": 0, "sparsity": 0.5, "tile": (2, 2, 2)}
    if given == "options":
        compiled = torch.compile(attend, backend="vsa", options=options)
    else:
        compiled = torch.compile(attend, backend=vsa_compile.vsa.with_options(**options))
    latents = torch.randn(1, 32, 4, 6, 8)
    (site,) = vsa_compile.explain(compiled, latents).sites
    assert (site.kept_tiles, site.total_tiles) == (12, 24)
    (site,) = vsa_compile.explain(compiled, latents, options=options | {"sparsity": 0.75}).sites
    assert (site.kept_tiles, site.total_tiles) == (6, 24)


def test_every_method_is_asked_what_it_costs():
    latents, options = torch.randn(1, 32, 4, 8, 8), {"min_tokens": 0, "sparsity": 0.75, "tile": (2, 2, 2)}

    def half_of_the_keys(q, k, v, gate, site):
        tiles = site.boxes.tiles
        listed = torch.arange(tiles // 2, dtype=torch.int32, device=q.device).repeat(1, 2, tiles, 1)
        counts = torch.full((1, 2, tiles), tiles // 2, dtype=torch.int32, device=q.device)
        where = (site.boxes.grid, site.boxes.tile, site.q_start, site.kv_start)
        out, *_ = torch.ops.vsa_compile.attend(q, k, v, listed, counts, *where, None, site.scale)
        return out.transpose(1, 2)

    vsa_compile.register_method("half_of_the_keys", half_of_the_keys)
    shares = {}
    for method in ("vsa", "bsa", "half_of_the_keys"):
        (site,) = vsa_compile.explain(attend, latents, options=options | {"method": method}).sites
        shares[method] = site.flops_sparse / site.flops_dense
    # BSA drops half of the queries, and each of the others keeps twice as many tiles.
    assert shares == {"vsa": 0.25, "bsa": pytest.approx(0.25, rel=0.1), "half_of_the_keys": 0.5}
