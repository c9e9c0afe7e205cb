"""Whole pipelines of diffusers: denoising loops with guidance, at many resolutions, adapters and offloading.

The components are tiny and random; prompts are passed as embeddings, so that no text encoder is needed.
Every tile is kept (sparsity 1e-6), so that the result has to be the eager pipeline's. The graphs run as
they are, converted and operator by operator, but for one test that goes through Inductor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
import zoo
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch._dynamo.utils import counters

import vsa_compile

pytestmark = pytest.mark.no_cover

Grid = tuple[int, int, int]
Run = Callable[[Grid], dict[str, Any]]

OPTIONS = {"min_tokens": 0, "sparsity": 1e-6}
SPARSE = {"sparsity": 0.9, "tile": (2, 2, 2)}
BOUND = 1e-4  # relative: three steps with guidance, in which roundings of fp32 add up
RESOLUTIONS = [
    (5, 6, 7), (3, 6, 10), (5, 7, 6), (3, 10, 6), (6, 5, 9), (6, 9, 5), (2, 8, 11), (2, 11, 8), (4, 7, 9),
    (4, 9, 7), (7, 3, 8), (7, 8, 3),
]  # fmt: skip


@dataclass
class Made:
    """A pipeline, what one graph of its transformer holds, and its arguments for a token grid."""

    pipe: DiffusionPipeline
    case: zoo.Case
    arguments: Run

    @property
    def transformer(self) -> Any:
        return self.pipe.transformer

    def __call__(self, grid: Grid = zoo.GRID, **more: Any) -> Tensor:
        """The video that comes of three steps from fixed noise."""
        noise = torch.Generator().manual_seed(0)
        given = {"num_inference_steps": 3, "output_type": "latent", "generator": noise} | self.arguments(grid)
        return self.pipe(**given | more).frames

    def assert_graphs(self, graphs: int) -> None:
        """So many graphs were compiled, and in every one all calls were judged right."""
        assert counters["vsa_compile"]["converted"] == graphs * self.case.sites
        assert counters["vsa_compile"]["refused"] == graphs * sum(self.case.refused.values())


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(grid: Grid, frames: int, size: int) -> dict[str, int]:
    """The video whose tokens span `frames` frames (but the first: one) and squares of `size` pixels."""
    return {"num_frames": frames * (grid[0] - 1) + 1, "height": size * grid[1], "width": size * grid[2]}


def made(family: str, case_name: str, arguments: Run, vae: Any = None, **components: Any) -> Made:
    case = next(case for case in zoo.VIDEO if case.name == case_name)
    transformer, _ = case.build()
    scheduler = components.pop("scheduler", None) or FlowMatchEulerDiscreteScheduler()
    parts = {"tokenizer": None, "text_encoder": None, "vae": vae, "scheduler": scheduler} | components
    pipe = getattr(diffusers, f"{family}Pipeline")(transformer=transformer, **parts)
    pipe.set_progress_bar_config(disable=True)
    return Made(pipe, case, arguments)


PROMPTS = {
    "prompt_embeds": normal(1, zoo.TEXT, 24, seed=1),
    "negative_prompt_embeds": normal(1, zoo.TEXT, 24, seed=2),
}


def wan() -> Made:
    """Two calls of the transformer in every step: with the prompt and without."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, num_res_blocks=1, dim_mult=[1, 1, 1, 1], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    return made("Wan", "wan", lambda grid: pixels(grid, 4, 16) | PROMPTS, vae)


def cogvideox() -> Made:
    """One call in every step, on a batch of two."""
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return made("CogVideoX", "cogvideox_5b", lambda grid: pixels(grid, 4, 16) | PROMPTS, scheduler=scheduler)


def hunyuan_video() -> Made:
    """Padded prompts of different lengths, and true guidance beside the embedded one."""
    texts = {}
    for i, prefix in enumerate(("", "negative_")):
        texts |= {
            f"{prefix}prompt_embeds": normal(1, zoo.TEXT, 24, seed=3 + i),
            f"{prefix}pooled_prompt_embeds": normal(1, 20, seed=5 + i),
            f"{prefix}prompt_attention_mask": zoo.text_mask(9 - 5 * i),
        }
    arguments = lambda grid: pixels(grid, 4, 16) | texts | {"true_cfg_scale": 3.0}  # noqa: E731
    return made("HunyuanVideo", "hunyuan_video", arguments, text_encoder_2=None, tokenizer_2=None)


def ltx() -> Made:
    """Packed tokens, whose grid are plain integers."""
    masks = {"prompt_attention_mask": zoo.text_mask(9), "negative_prompt_attention_mask": zoo.text_mask(4)}
    return made("LTX", "ltx_video", lambda grid: pixels(grid, 8, 32) | PROMPTS | masks)


FAMILIES = [wan, cogvideox, hunyuan_video, ltx]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors are small here: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """The converted graphs, in the order of their compilation; they run as they are."""
    compiled = []

    def as_it_is(module: torch.fx.GraphModule, example_inputs: Any, patches: Any) -> Callable:
        compiled.append(module)
        return module.forward

    monkeypatch.setattr("vsa_compile.torch_compat.compile_with_inductor", as_it_is)
    return compiled


def difference(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# --- Resolutions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f is not wan else ()) for f in FAMILIES],
)
def test_three_graphs_serve_twelve_resolutions(family, graphs):
    pipeline = family()
    wanted = {grid: pipeline(grid) for grid in RESOLUTIONS}
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    for grid in RESOLUTIONS:
        assert difference(pipeline(grid), wanted[grid]) < BOUND
    assert 2 <= len(graphs) <= 3
    pipeline.assert_graphs(len(graphs))


@pytest.mark.parametrize("family", [wan, pytest.param(ltx, marks=pytest.mark.slow)])
def test_portrait_right_after_landscape(family, graphs):
    """Both have the same number of tokens, so that Dynamo takes that for a constant where it is an input."""
    pipeline = family()
    wanted = {grid: pipeline(grid) for grid in ((5, 6, 7), (5, 7, 6))}
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    for grid in wanted:
        assert difference(pipeline(grid), wanted[grid]) < BOUND
    assert len(graphs) == 2
    pipeline.assert_graphs(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_of_every_pipeline_shows_in_its_video(family, graphs):
    """Else the other tests prove nothing."""
    pipeline = family()
    dense = pipeline()
    pipeline.transformer.compile(backend="vsa", options=OPTIONS | SPARSE)
    assert difference(pipeline(), dense) > 100 * BOUND
    pipeline.assert_graphs(1)


@pytest.mark.slow
def test_inductor_makes_the_same_video():
    """And the autoencoder turns it into pixels."""
    pipeline = wan()
    wanted = pipeline(output_type="pt")
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    got = pipeline(output_type="pt")
    assert got.shape == (1, 17, 3, 96, 112)
    assert difference(got, wanted) < BOUND
    pipeline.assert_graphs(1)


# --- What people do to pipelines ----------------------------------------------------------------------


def lora(transformer: torch.nn.Module) -> dict[str, Tensor]:
    """An adapter of rank 2 for all projections of the video's attention, as files hold it."""
    weights = {}
    for i, (name, module) in enumerate(transformer.named_modules()):
        if ".attn1.to_" in name and isinstance(module, torch.nn.Linear):
            weights[f"transformer.{name}.lora_A.weight"] = 0.3 * normal(2, module.in_features, seed=i)
            weights[f"transformer.{name}.lora_B.weight"] = 0.3 * normal(module.out_features, 2, seed=-i)
    assert len(weights) == 2 * 4 * 2  # matrices, projections, blocks
    return weights


def test_adapters_come_go_and_change_their_weight(graphs):
    pytest.importorskip("peft")
    pipeline = wan()
    plain = pipeline()
    pipeline.pipe.load_lora_weights(lora(pipeline.transformer), adapter_name="style")
    steps = [
        lambda: None,
        lambda: pipeline.pipe.set_adapters("style", 0.5),
        pipeline.pipe.disable_lora,
        pipeline.pipe.enable_lora,
        lambda: pipeline.pipe.fuse_lora(adapter_names=["style"]),
    ]
    eager, compiled = [], []
    for step in steps:
        step()
        eager.append(pipeline())
    pipeline.pipe.unfuse_lora()
    pipeline.pipe.set_adapters("style", 1.0)
    assert difference(eager[2], plain) < BOUND
    assert all(difference(eager[i], plain) > 100 * BOUND for i in (0, 1))
    assert difference(eager[1], eager[0]) > 100 * BOUND
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    for step in steps:
        step()
        compiled.append(pipeline())
    for got, wanted in zip(compiled, eager, strict=True):
        assert difference(got, wanted) < BOUND
    pipeline.assert_graphs(len(graphs))


def test_models_that_wait_elsewhere_are_sparse(graphs):
    """The hook moves the model when it is called, in front of what Dynamo compiles."""
    pipeline = wan()
    wanted = {grid: pipeline(grid) for grid in RESOLUTIONS[:2]}
    pipeline.pipe.enable_model_cpu_offload(device="cpu")
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    for grid in wanted:
        assert difference(pipeline(grid), wanted[grid]) < BOUND
    pipeline.assert_graphs(len(graphs))
    assert len(graphs) <= 3


def test_a_named_attention_backend_is_sparse(graphs):
    pipeline = hunyuan_video()
    wanted = pipeline()
    pipeline.transformer.set_attention_backend("native")
    pipeline.transformer.compile(backend="vsa", options=OPTIONS)
    assert difference(pipeline(), wanted) < BOUND
    pipeline.assert_graphs(1)


# --- Blocks that are compiled one by one --------------------------------------------------------------


def repeated(pipeline: Made, **options: Any) -> None:
    """As diffusers recommends: all blocks share their graphs."""
    pipeline.transformer.compile_repeated_blocks(backend="vsa", options=OPTIONS | options)


def offloaded(pipeline: Made, **options: Any) -> None:
    """Dynamo stops at the hooks that bring the layers, and so takes the blocks one by one."""
    cpu = torch.device("cpu")
    pipeline.transformer.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    pipeline.transformer.compile(backend="vsa", options=OPTIONS | options)


ONE_BY_ONE = pytest.mark.parametrize(
    "compile_blocks", [pytest.param(repeated, marks=pytest.mark.slow), offloaded]
)


@ONE_BY_ONE
def test_blocks_alone_stay_dense_and_say_so(compile_blocks, graphs, caplog):
    pipeline = wan()
    grids = RESOLUTIONS[:4] if compile_blocks is repeated else RESOLUTIONS[:1]
    wanted = {grid: pipeline(grid) for grid in grids}
    with caplog.at_level("DEBUG", "vsa_compile"):
        compile_blocks(pipeline, **SPARSE)
        for grid in wanted:
            assert difference(pipeline(grid), wanted[grid]) < BOUND
    counted = dict(counters["vsa_compile"])
    blocks = counted["refused.unknown-grid"]
    assert 1 <= blocks <= 3
    assert counted == {"refused": 2 * blocks, "refused.unknown-grid": blocks, "refused.cross": blocks}
    assert caplog.text.count("the graph does not show the (frames, rows, cols) of these tokens") == blocks


def sparse_by_hand(pipeline: Made, grid: Grid) -> Tensor:
    """The video of the eager pipeline with our operator where the video attends to itself."""
    dense, tokens = torch.nn.functional.scaled_dot_product_attention, math.prod(grid)

    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        if query.shape[2] != tokens or key.shape[2] != tokens:
            return dense(query, key, value, **more)
        return vsa_compile.attention(query, key, value, grid=grid, **SPARSE)

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        return pipeline(grid)


@ONE_BY_ONE
def test_prepared_blocks_are_sparse(compile_blocks, graphs):
    """With the grid of every call, though those of landscape and portrait look the same from a block."""
    pipeline = wan()
    grids = RESOLUTIONS if compile_blocks is repeated else RESOLUTIONS[:3]
    wanted = {grid: sparse_by_hand(pipeline, grid) for grid in grids}
    vsa_compile.prepare(pipeline.transformer)
    compile_blocks(pipeline, **SPARSE)
    for grid in grids:
        assert difference(pipeline(grid), wanted[grid]) < BOUND
    blocks = counters["vsa_compile"]["converted"]
    assert 1 <= blocks <= 3
    assert counters["vsa_compile"] == {"converted": blocks, "refused": blocks, "refused.cross": blocks}
