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


def test_a_model_of_the_zoo_converts_from_a_file_and_can_be_saved_again(tmp_path):
    (case,) = (case for case in zoo.VIDEO if case.name == "wan")
    model, inputs = case.build()
    arguments, path = inputs(case.grid), tmp_path / "model.pt2"
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (), arguments), path)
        program = torch.export.load(path)
        report = vsa_compile.convert_exported(program, {"min_tokens": 0, "sparsity": 1e-6})
        assert report.converted == case.sites
        torch.export.save(program, path)
        got, wanted = torch.export.load(path).module()(**arguments), model(**arguments)
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


class WritesLater(torch.nn.Module):
    """Tokens and a mask that are written to before attention."""

    def __init__(self, write) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.write = torch.nn.Conv3d(4, 16, 1), write

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2).clone()
        mask = torch.ones(2, 64, dtype=torch.bool)
        self.write(x, mask)
        x = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, None, None])


def hidden(x: torch.Tensor, mask: torch.Tensor) -> None:
    mask[:, 3:9] = False


def hidden_in_a_region(x: torch.Tensor, mask: torch.Tensor) -> None:
    with torch.no_grad():
        flat = mask.view(-1)
        flat[70:75].fill_(False)
    x.mul_(flat.sum())


def opened(x: torch.Tensor, mask: torch.Tensor) -> None:
    """Export makes an input of the number that is assigned."""
    mask.zero_()
    mask[:, :40] = True
    mask[:, 40:] = True


def opened_in_part(x: torch.Tensor, mask: torch.Tensor) -> None:
    mask.zero_()
    mask[:, :40] = True


def swapped(x: torch.Tensor, mask: torch.Tensor) -> None:
    x[:, :32].copy_(x[:, 32:].flip(1))


def kept(x: torch.Tensor, mask: torch.Tensor) -> None:
    x[:, :, :8].mul_(2)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("write", "slug"),
    [
        (hidden, "mask"),
        (hidden_in_a_region, "mask"),
        (swapped, "reordered"),
        (kept, ""),
        (opened, ""),
        (opened_in_part, "mask"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_program_from_a_file_knows_which_values_share_memory(write, slug: str, loaded: bool, tmp_path):
    model, latents = WritesLater(write), torch.randn(2, 4, 4, 4, 4)
    program = torch.export.export(model, (latents,))
    if loaded:
        torch.export.save(program, tmp_path / "model.pt2")
        program = torch.export.load(tmp_path / "model.pt2")
    (site,) = vsa_compile.convert_exported(program, {"min_tokens": 0, "sparsity": 1e-6}).sites
    assert site.slug == slug
    assert_same_output(program.module()(latents), model(latents))
