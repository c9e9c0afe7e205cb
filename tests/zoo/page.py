"""docs/models.md: what is converted in which model, written from the cases.

The page shows what the cases claim; tests/test_models.py, test_hidden.py and test_beyond.py hold every claim
against the model.
"""

from __future__ import annotations

from pathlib import Path

from .case import Case

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

DENSE = {
    "cross": "cross-attention",
    "text": "text",
    "audio": "sound",
    "spatial": "inside each frame",
    "temporal": "along time",
    "image": "an image, without frames",
    "mask": "under a mask between tokens",
    "padding": "under a mask that is not provably open for the video",
}

HEAD = """# Models

What happens to the attention calls of a model under `torch.compile(model, backend="vsa")`. Each row is a
model of diffusers or transformers, or one in plain PyTorch, with random weights and one or two blocks; the
tests compare the calls that are sparse, their grid and their sequences with this table, on grids such as
5x6x7 and 5x7x6 and with symbolic sizes, and the converted model with the eager one, gradients included.

"Where the grid comes from" says what shows frames, rows and cols. *graph*: the sizes of the inputs alone, so
a model called with another size is compiled for it. *prepare*: `vsa_compile.prepare(model)`, which learns it
from the call, and keeps models with text of a data-dependent length in one graph. *video_grid*:
`with vsa_compile.video_grid(frames, rows, cols):` around the call, or `options={"grid": ...}` for one grid.

In a sequence, *video* is the part that becomes sparse; every other part is attended to by all tokens, and
attends to all. *history* is an earlier part of the video, *copy* the same video once more.

This page is written by `python tests/zoo`.

## Video models

| model | sparse / all calls | where the grid comes from | sequence | what stays dense |
|---|---|---|---|---|
"""

NOTHING = """
## Models that stay as they are

No call of these is provably 3D self-attention over one video; they keep their attention.

| model | sparse / all calls | what stays dense |
|---|---|---|
"""


def page() -> str:
    """The text of docs/models.md, from all cases that tests hold."""
    import beyond
    import hidden

    from . import NEGATIVE, VIDEO

    video = [*VIDEO, *hidden.HIDDEN, hidden.FRAMES, *beyond.VIDEO, beyond.BROKEN, *beyond.ENCODERS]
    sparse = [
        f"| {_model(case)} | {case.sites} / {case.calls} | {' or '.join(case.how)} "
        f"| {_sequences(case)} | {_dense(case)} |\n"
        for case in video
    ]
    negative = [*NEGATIVE, *hidden.DENSE, *beyond.NEGATIVE]
    dense = [f"| {_model(case)} | 0 / {case.calls} | {_dense(case)} |\n" for case in negative]
    return HEAD + "".join(sparse) + NOTHING + "".join(dense)


def _model(case: Case) -> str:
    if not case.of:
        return f"plain PyTorch, {case.name}"
    return f"`{case.of}`, {case.note}" if case.note else f"`{case.of}`"


def _sequences(case: Case) -> str:
    return "; ".join(sequence.replace(" | ", " + ") for sequence in case.segments)


def _dense(case: Case) -> str:
    return ", ".join(f"{count} {DENSE[kind]}" for kind, count in case.refused.items())
