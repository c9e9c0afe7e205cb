"""Exported models convert as many calls as through Dynamo: aten's spellings say what torch's do."""

import pytest
import torch

import vsa_compile

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import zoo
from compare import RULE_C, assert_same_output

# Rotary halves written into empty memory, a part of a volume that is added to in place, tokens behind text
# that are turned in place, positions that are written row by row.
DIFFERENT = ("wan", "wan_animate", "cogvideox_5b", "ltx_video")


def each_export():
    """`make test` makes Wan alone functional: copies are written alike in every model."""
    for case in zoo.VIDEO:
        for functional in (False, True):
            slow = case.name not in (DIFFERENT[:1] if functional else DIFFERENT)
            name = f"{case.name}-{'functional' if functional else 'as-captured'}"
            yield pytest.param(case, functional, marks=pytest.mark.slow if slow else (), id=name)


@pytest.mark.parametrize(("case", "functional"), list(each_export()))
def test_a_model_of_the_zoo_converts_exported(case: zoo.Case, functional: bool):
    model, inputs = case.build()
    arguments = inputs(case.grid)
    with torch.no_grad():
        program = torch.export.export(model, (), arguments)
        program = program.run_decompositions({}) if functional else program
        report = vsa_compile.convert_exported(program, {"min_tokens": 0, "sparsity": 1e-6})
        got, wanted = program.module()(**arguments), model(**arguments)
    assert report.converted == case.sites
    assert_same_output(got[0], wanted[0], RULE_C * case.tolerance)


class Region(torch.nn.Module):
    """Latents -> tokens -> attention, within a region that export keeps as an operator."""

    def __init__(self, region) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.region = torch.nn.Conv3d(4, 16, 1), region

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        with self.region():
            x = self.patch(latents).flatten(2).transpose(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    "region", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["no_grad", "autocast"]
)
def test_a_call_in_a_region_converts_exported(region):
    model, latents = Region(region), torch.randn(2, 4, 4, 4, 4)
    program = torch.export.export(model, (latents,))
    (site,) = vsa_compile.convert_exported(program, {"min_tokens": 0, "sparsity": 1e-6}).sites
    assert site.grid == (4, 4, 4), site.reason
    assert_same_output(program.module()(latents), model(latents))
