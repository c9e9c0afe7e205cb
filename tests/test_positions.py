"""Positions are found by what they are, whatever they are called and wherever they lie in the arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_same_output
from test_prepare import Spy, by_blocks
from torch import Tensor, nn
from toy import Habits, ToyDiT

import vsa_compile
from vsa_compile.grids.positions import Reader, VideoTokens
from vsa_compile.grids.volumes import of_volume

pytestmark = pytest.mark.quick

GRID, TOKENS = (3, 4, 5), 60
OTHER = (3, 5, 4)


def places(grid: tuple[int, int, int] = GRID) -> Tensor:
    """(N, 3): frame, row and col of every token."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid))


@dataclasses.dataclass
class Modality:
    latent: Tensor
    positions: Tensor


def patches(grid: tuple[int, int, int] = GRID) -> Tensor:
    """(1, 3, N, 2): begin and end of every patch, in seconds and pixels, as LTX-2 has them."""
    begin = places(grid).float() * torch.tensor([8 / 25, 32, 32])
    return torch.stack([begin, begin + 1], -1).permute(1, 0, 2)[None]


def behind_text(grid: tuple[int, int, int] = GRID) -> Tensor:
    """(N + 7, 3), as Flux and its kin have them: text is at 0."""
    return torch.cat([torch.zeros(7, 3, dtype=torch.long), places(grid)])


WITH_INDEX = torch.cat([places(), torch.zeros(TOKENS, 1, dtype=torch.long)], 1)
FOUND = {
    "(N, 3)": ({"img_ids": places()}, VideoTokens(GRID)),
    "(B, N, 3)": (
        {"x": torch.randn(2, TOKENS, 8), "indices_grid": places().expand(2, -1, -1)},
        VideoTokens(GRID),
    ),
    "(B, 3, N)": ({"video_positions": places().T.float().expand(2, -1, -1)}, VideoTokens(GRID)),
    "(3, B, N)": ({"ids": places().T[:, None].expand(-1, 2, -1)}, VideoTokens(GRID)),
    "(B, 3, N, 2)": ({"p": patches()}, VideoTokens(GRID)),
    "an index beside": ({"ids": WITH_INDEX}, VideoTokens(GRID)),
    "a dataclass": ({"video": Modality(torch.randn(1, TOKENS, 8), patches())}, VideoTokens(GRID)),
    "a dictionary": ({"batch": {"rope": [places()]}}, VideoTokens(GRID)),
    "behind text": ({"ids": behind_text()}, VideoTokens(GRID, 7, 67)),
    "the larger": ({"a": places((2, 3, 4)), "b": places()}, VideoTokens(GRID)),
    "twice": ({"a": places(), "b": patches()}, VideoTokens(GRID)),
}


@pytest.mark.parametrize("name", FOUND)
def test_positions_of_a_grid_are_found(name: str):
    given, video = FOUND[name]
    assert Reader().by_any(given) == video


OF_SEVERAL_SAMPLES = torch.stack([places(), places(OTHER)])
NOT_FOUND: dict[str, dict[str, Any]] = {
    "features": {"x": torch.randn(2, TOKENS, 3)},
    "reordered": {"ids": places()[torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))]},
    "cols first": {"ids": places().flip(0)},
    "another grid for each sample": {"ids": OF_SEVERAL_SAMPLES},
    "one axis": {"ids": torch.arange(TOKENS)[:, None].expand(-1, 3)},
    "truth values": {"mask": torch.ones(TOKENS, 3, dtype=torch.bool)},
    "parameters": {"table": nn.Parameter(places().float())},
    "few": {"color": torch.eye(3)},
    "no memory": {"ids": places().to("meta")},
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_is_no_positions_of_a_grid_shows_none(name: str):
    video = Reader().by_any(NOT_FOUND[name])
    assert video is None or video.grid is None


ODD: dict[str, Callable[[], Any]] = {
    "sparse": lambda: places().float().to_sparse(),
    "compressed": lambda: places().float().to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([places(), places()[:20]]),
    "quantized": lambda: torch.quantize_per_tensor(places().float(), 1.0, 0, torch.quint8),
    "float8": lambda: places().float().to(torch.float8_e4m3fn),
    "unsigned": lambda: places().to(torch.uint16),
    "no samples": lambda: torch.zeros(0, TOKENS, 3),
    "no tokens": lambda: torch.zeros(2, 0, 3),
    "a list of nested": lambda: [torch.nested.nested_tensor([places(), places()[:20]])],
}


class Ignores(nn.Module):
    """Does not look at its argument, and fails where its attributes are asked for."""

    in_channels, in_dim, patch_size = [16], "16", (0, 2, 2)

    @property
    def config(self) -> Any:
        raise KeyError("config")

    def forward(self, x: Any) -> int:
        return 3


@pytest.mark.filterwarnings("ignore")  # torch's, of what it calls a prototype or deprecated
@pytest.mark.parametrize("name", ODD)
def test_a_prepared_model_runs_with_any_argument(name: str):
    assert vsa_compile.prepare(Ignores())(ODD[name]()) == 3


def test_a_prepared_model_runs_under_transforms():
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model, x = vsa_compile.prepare(Doubles()), places().float().expand(2, -1, -1)
    assert torch.equal(torch.vmap(model)(x), 2 * x)
    assert torch.equal(torch.func.functionalize(model)(x), 2 * x)
    traced = torch.fx.experimental.proxy_tensor.make_fx(model, tracing_mode="real")(x)
    assert torch.equal(traced(x), 2 * x)


def test_tensors_that_show_several_grids_show_none_and_the_reason_says_so():
    video = Reader().by_any({"a": places(), "b": places(OTHER)})
    assert video is not None
    assert (video.grid, video.why) == (None, "tensors of positions show several: (3, 4, 5), (3, 5, 4)")


def test_the_same_tensors_are_read_once():
    reader, given = Reader(), {"ids": places()}
    assert reader.by_any(given) is reader.by_any(given)
    given["ids"].add_(1)
    assert reader.by_any(given) == VideoTokens(GRID)


class OfModalities(nn.Module):
    """Tokens that come as they are, with their positions beside them; its blocks are compiled one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = ToyDiT(Habits(blocks=2)).blocks

    def forward(self, video: Modality) -> Tensor:
        x = video.latent
        for block in self.blocks:
            x = block(x, None)
        return x


def test_a_prepared_model_finds_positions_in_a_dataclass():
    spy, model, plain = Spy(sparsity=1e-6), OfModalities(), OfModalities()
    by_blocks(vsa_compile.prepare(model), spy)
    with torch.no_grad():
        for grid in (GRID, OTHER):
            video = Modality(torch.randn(1, TOKENS, 64), patches(grid))
            assert_same_output(model(video), plain(video))
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}


# --- Volumes ---------------------------------------------------------------------------------------


class Embedding(nn.Module):
    patch_size = (1, 2, 2)


class Linear(nn.Module):
    """Its patch embedding is a linear layer; a module of it knows the size of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.embedding = 16, Embedding()
        self.patch, self.blocks = nn.Linear(16 * 4, 64), ToyDiT(Habits(blocks=2)).blocks

    def forward(self, volume: Tensor) -> Tensor:
        patches = volume.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6)
        x = self.patch(patches.flatten(4).flatten(1, 3))
        for block in self.blocks:
            x = block(x, None)
        return x


def test_a_prepared_model_with_a_linear_patch_embedding_counts_patches():
    spy, model, plain = Spy(sparsity=1e-6), Linear(), Linear()
    plain.load_state_dict(model.state_dict())
    by_blocks(vsa_compile.prepare(model), spy)
    with torch.no_grad():
        for frames, rows, cols in (GRID, OTHER):
            volume = torch.randn(1, 16, frames, 2 * rows, 2 * cols)
            assert_same_output(model(volume), plain(volume))
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}


@pytest.mark.parametrize(
    ("given", "grid"),
    [
        ({"x": torch.empty(1, 16, 3, 4, 6)}, (3, 2, 3)),
        ({"x": torch.empty(1, 3, 16, 4, 6)}, (3, 2, 3)),
        ({"x": torch.empty(1, 3, 4, 6, 16)}, (3, 2, 3)),
        ({"x": [torch.empty(16, 3, 4, 6)] * 2}, (3, 2, 3)),
        ({"x": torch.empty(1, 16, 3, 4, 6), "text": torch.empty(1, 5, 8)}, (3, 2, 3)),
        ({"x": torch.empty(1, 16, 16, 4, 6)}, None),  # which are the channels?
        ({"x": torch.empty(1, 7, 3, 4, 6)}, None),
        ({"x": torch.empty(1, 16, 3, 5, 6)}, None),  # padded to patches, or cut?
        ({"x": [torch.empty(16, 3, 4, 6), torch.empty(16, 3, 6, 4)]}, None),
        ({"x": torch.empty(1, 16, 3, 4, 6), "y": torch.empty(1, 16, 3, 4, 8)}, None),
        ({"x": torch.empty(1, 12, 64)}, None),
    ],
)
def test_the_volume_of_a_call_shows_its_grid_if_the_channels_are_known(given: dict, grid: tuple | None):
    video = of_volume(Linear(), given)
    assert (video and video.grid) == grid
