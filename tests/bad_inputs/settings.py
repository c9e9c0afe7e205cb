"""X24: every option of the backend, and every argument by hand, with a value that it cannot have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vsa_compile
from vsa_compile import methods
from vsa_compile.backend import read_options

from .row import COMPUTED, TOKENS, Row, arguments, by_hand, itself, tensor
from .row import Video as Model
from .shapes import EXAMPLE, THREE

SHARE = (
    "but it must be a number from 0 (dense) to below 1: the share of query-key work that is NOT computed. "
    "0.875 keeps one tile in eight."
)
KNOWN = "Known: dense_layers, fallback, grid, inductor, method, min_tokens, mode, sparsity, tile."
OF_TILES = "but it must be a share above 0, at most 1."
LEAST = "but it must be an integer >= 0, or None for where the kernel at hand beats dense attention."
METHOD = "but it must be the name of a sparse attention method. Try 'vsa'."
LAYERS = (
    "but it must be a sequence of block indices >= 0 and module paths, such as (0, 1, 'single_blocks.7')."
)
PATCHES = "but it must be a dict of Inductor config patches by name."
QKV = "(batch, heads, tokens, width)."


def option(given: Any) -> Callable[[], str]:
    """Options as torch.compile hands them to the backend, before any work is done."""

    def how() -> str:
        read_options(given)
        return "accepted"

    return how


def compiled_with(options: Any) -> str:
    model = torch.compile(Model(itself), backend="vsa", options=options)
    model(tensor(1, 32, 1, 2, 2))
    return "accepted"


class Tokens(nn.Module):
    """Gets tokens as they are: where the video is among them, only a rule can tell."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


def hinted(arguments: str) -> Callable[[], str]:
    """A hint for sequences that hold the video and others."""

    def how() -> str:
        with eval(f"vsa_compile.video_grid(3, 4, 5, {arguments})"):
            return "accepted"

    return how


def ruled(video: Any) -> Callable[[], str]:
    """A prepared model whose rule returns `video`, on a sequence of 60 tokens."""

    def how() -> str:
        vsa_compile.register_grid_rule(Tokens, lambda model, given: video)
        try:
            vsa_compile.prepare(Tokens())(tensor(1, TOKENS, 32))
        finally:
            vsa_compile.register_grid_rule(Tokens, None)
        return "accepted"

    return how


def place(*given: Any) -> tuple[str, Callable[[], str]]:
    return f"a rule that returns VideoTokens({', '.join(map(repr, given))})", ruled(
        vsa_compile.VideoTokens(*given)
    )


OF_MODELS = tuple(
    Row(
        "X24",
        f"{function.__name__}({name})",
        lambda function=function, given=given: str(function(given)),
        f"ArgumentError: model is {shown}, but it must be {allowed}",
    )
    for function, allowed in (
        *((f, "a torch.nn.Module.") for f in (vsa_compile.prepare, vsa_compile.unprepare)),
        *((f, "a torch.nn.Module.") for f in (vsa_compile.patch_attention, vsa_compile.unpatch_attention)),
        *((f, "a torch.nn.Module.") for f in (vsa_compile.add_gates, vsa_compile.remove_gates)),
        (
            vsa_compile.explain,
            "a torch.nn.Module, or a function, pipeline or compiled form of one. For example "
            "explain(model, **inputs).",
        ),
    )
    for name, given, shown in (("3", 3, "'int'"), ("None", None, "'NoneType'"))
)

OF_PATCHES = (
    Row(
        "X24",
        "patch_attention of a model that is not prepared",
        lambda: str(vsa_compile.patch_attention(torch.nn.Linear(4, 4))),
        "ArgumentError: model is 'Linear', but it must be a prepared model. Call vsa_compile.prepare(model) "
        "first: it learns the grid.",
    ),
    Row(
        "X24",
        "patch_attention with a sparsity of 1",
        lambda: str(vsa_compile.patch_attention(vsa_compile.prepare(torch.nn.Linear(4, 4)), {"sparsity": 1})),
        "OptionError: sparsity is 1, but it must be a number from 0 (dense) to below 1: the share of "
        "query-key work that is NOT computed. 0.875 keeps one tile in eight.",
    ),
)

IN_FRONT = "but it must be an integer >= 0: the number of tokens in front of the video."
FITS = (
    "but it must be such that start + frames * rows * cols <= length. Count tokens of the sequence that "
    "blocks get: latent frames, rows and cols after patchify."
)
OF_RULES = (
    *(
        Row("X24", *place(*given), f"OptionError: {text}")
        for given, text in (
            (((3, 4, 6), 0, TOKENS), f"VideoTokens is ((3, 4, 6), 0, 60), {FITS}"),
            (((3, 4, 5), 3, TOKENS), f"VideoTokens is ((3, 4, 5), 3, 60), {FITS}"),
            (((3, 4, 5), -5, TOKENS), f"start of VideoTokens is -5, {IN_FRONT}"),
            (((3, 4, 5), "a", TOKENS), f"start of VideoTokens is 'a', {IN_FRONT}"),
            (((3, 4, 4), 1.5, TOKENS), f"start of VideoTokens is 1.5, {IN_FRONT}"),
            (((3, 4, 4), True, TOKENS), f"start of VideoTokens is True, {IN_FRONT}"),
            (
                ((3, 4, 4), 12),
                "start of VideoTokens is 12, but it must be 0 if length is None. Say how long the whole "
                "sequence is: VideoTokens(..., start=12, length=...).",
            ),
            (
                ((3, 4, 5), 0, 60.0),
                "length of VideoTokens is 60.0, but it must be an integer, or None if the video is the whole "
                "sequence.",
            ),
            (((3, 0, 5), 0, TOKENS), f"grid is (3, 0, 5), {THREE} {EXAMPLE}"),
        )
    ),
    Row(
        "X24",
        "a rule that returns 'video'",
        ruled("video"),
        f"OptionError: grid is 'video', {THREE} {EXAMPLE}",
    ),
    *(
        Row("X24", *place(*given), "accepted")
        for given in (((3, 4, 4), 12, TOKENS), ((3, 4, 5), 0, TOKENS), ((3, 4, 5),))
    ),
    *(
        Row("X24", f"video_grid(3, 4, 5, {given})", hinted(given), f"OptionError: {text}")
        for given, text in (
            ("start=-1, tokens=68", f"start of video_grid is -1, {IN_FRONT}"),
            (
                "start=8",
                "start of video_grid is 8, but it must be 0 if tokens is None. Say how long the whole "
                "sequence is: video_grid(..., start=8, tokens=...).",
            ),
            ("start=9, tokens=68", f"video_grid is ((3, 4, 5), 9, 68), {FITS.replace('length', 'tokens')}"),
            (
                "tokens=68.0",
                "tokens of video_grid is 68.0, but it must be an integer, or None if the video is the whole "
                "sequence.",
            ),
        )
    ),
    Row("X24", "video_grid(3, 4, 5, start=8, tokens=68)", hinted("start=8, tokens=68"), "accepted"),
    Row(
        "X24",
        "register_grid_rule(model, rule)",
        lambda: str(vsa_compile.register_grid_rule(Tokens(), len)),
        "ArgumentError: cls is Tokens(), but it must be a class of torch.nn.Module.",
    ),
    Row(
        "X24",
        "register_grid_rule(cls, (3, 4, 5))",
        lambda: str(vsa_compile.register_grid_rule(Tokens, (3, 4, 5))),
        "ArgumentError: rule is (3, 4, 5), but it must be a function (model, arguments) -> (frames, rows, "
        "cols).",
    ),
)

OF_METHODS = tuple(
    Row(
        "X24",
        f"register_method({name!r}, {method!r})",
        lambda name=name, method=method: str(vsa_compile.register_method(name, method)),
        f"ArgumentError: {text}",
    )
    for name, method, text in (
        ("own", 3, "method is 3, but it must be a Method or a function (q, k, v, gate, site) -> out."),
        ("own method", 3, "name is 'own method', but it must be an identifier, such as 'nearest'."),
        (3, 3, "name is 3, but it must be an identifier, such as 'nearest'."),
    )
)

OPTIONS = (
    Row(
        "X24",
        "torch.compile with a mistyped option",
        lambda: compiled_with({"sparsty": 0.5}),
        f"OptionError: unknown option 'sparsty'; did you mean 'sparsity'? {KNOWN} Inductor's own settings "
        f"go into "
        "options={'inductor': {...}}.",
    ),
    Row(
        "X24",
        "vsa.with_options(sparsity=7), or Options(sparsity=7)",
        lambda: str(vsa_compile.vsa.with_options(sparsity=7)),
        f"OptionError: sparsity is 7, {SHARE}",
    ),
    Row(
        "X24",
        "options both in vsa.with_options(...) and in torch.compile",
        lambda: str(torch.compile(len, backend=vsa_compile.vsa.with_options(), options={"sparsity": 0.5})),
        "OptionError: options are given to vsa.with_options(...) and to torch.compile as well. Give all of "
        "them to one of the two.",
    ),
    *(
        Row("X24", f"{method}(share={share})", lambda make=make, share=share: str(make(share)), text)
        for method, make, share, text in (
            ("TopK", lambda share: methods.TopK(share), 1.5, f"ArgumentError: share is 1.5, {OF_TILES}"),
            ("TopK", lambda share: methods.TopK(share), 0, f"ArgumentError: share is 0, {OF_TILES}"),
            (
                "AtMost",
                lambda share: methods.AtMost(methods.TopP(), share),
                float("nan"),
                f"ArgumentError: share is nan, {OF_TILES}",
            ),
            ("TopP", lambda mass: methods.TopP(mass), -1, f"ArgumentError: mass is -1, {OF_TILES}"),
        )
    ),
    *(
        Row("X24", f"options={given!r}", option(given), f"OptionError: {text}")
        for given, text in (
            (
                {3: 4},
                f"unknown option '3'. {KNOWN} Inductor's own settings go into options={{'inductor': "
                f"{{...}}}}.",
            ),
            (3, 'options is 3, but it must be a dict. For example {"sparsity": 0.875}.'),
            ({"sparsity": -0.1}, f"sparsity is -0.1, {SHARE}"),
            ({"sparsity": 1.0}, f"sparsity is 1.0, {SHARE}"),
            ({"sparsity": 1.5}, f"sparsity is 1.5, {SHARE}"),
            ({"sparsity": float("nan")}, f"sparsity is nan, {SHARE}"),
            ({"sparsity": "high"}, f"sparsity is 'high', {SHARE}"),
            ({"sparsity": True}, f"sparsity is True, {SHARE}"),
            ({"sparsity": None}, f"sparsity is None, {SHARE}"),
            ({"method": 3}, f"method is 3, {METHOD}"),
            ({"method": ["vsa"]}, f"method is ['vsa'], {METHOD}"),
            ({"tile": (0, 4, 4)}, f"tile is (0, 4, 4), {THREE} The papers use (4, 4, 4)."),
            ({"tile": (4, 4)}, f"tile is (4, 4), {THREE} The papers use (4, 4, 4)."),
            ({"tile": 64}, f"tile is 64, {THREE} The papers use (4, 4, 4)."),
            ({"tile": (4.0, 4, 4)}, f"tile is (4.0, 4, 4), {THREE} The papers use (4, 4, 4)."),
            ({"grid": (0, 0, 0)}, f"grid is (0, 0, 0), {THREE} {EXAMPLE}"),
            ({"grid": (21, 30.0, 52)}, f"grid is (21, 30.0, 52), {THREE} {EXAMPLE}"),
            ({"grid": "21x30x52"}, f"grid is '21x30x52', {THREE} {EXAMPLE}"),
            ({"min_tokens": -1}, f"min_tokens is -1, {LEAST}"),
            ({"min_tokens": 4096.0}, f"min_tokens is 4096.0, {LEAST}"),
            ({"dense_layers": (0, -2)}, f"dense_layers is (0, -2), {LAYERS}"),
            ({"dense_layers": 3}, f"dense_layers is 3, {LAYERS}"),
            ({"dense_layers": "01"}, f"dense_layers is '01', {LAYERS}"),
            ({"fallback": "eror"}, "fallback is 'eror', but it must be 'dense' or 'error'."),
            (
                {"mode": "fastest"},
                "Unrecognized mode=fastest, should be one of: default, lite, reduce-overhead, "
                "max-autotune-no-cudagraphs, max-autotune",
            ),
            (
                {"mode": 3},
                "mode is 3, but it must be a mode of torch.compile, such as 'max-autotune', or None.",
            ),
            ({"inductor": 3}, f"inductor is 3, {PATCHES}"),
            ({"inductor": {3: 4}}, f"inductor is {{3: 4}}, {PATCHES}"),
            (
                {"inductor": {"max_autotun": True}},
                "unknown Inductor setting 'max_autotun'; did you mean 'max_autotune'?",
            ),
        )
    ),
    Row(
        "X24",
        "options={'method': 'vsaa'}",
        option({"method": "vsaa"}),
        "ArgumentError: unknown method 'vsaa'; did you mean 'vsa'? Known: bsa, sta, vsa.",
    ),
    *(
        Row("X24", f"options={{'tile': {tile}}}", option({"tile": tile}), "accepted")
        for tile in ((3, 5, 7), [2, 2, 2])
    ),
    *(
        Row("X24", f"{what} (by hand)", by_hand(tile=tile), COMPUTED)
        for what, tile in (
            ("a tile of 27 tokens, no power of two", (3, 3, 3)),
            ("a tile of one token", (1, 1, 1)),
            ("a tile larger than the grid", (10**6, 10**6, 10**6)),
        )
    ),
    *(
        Row("X24", f"{name}={value!r} (by hand)", by_hand(**{name: value}), text)
        for name, value, text in (
            ("sparsity", 1.0, f"OptionError: sparsity is 1.0, {SHARE}"),
            ("sparsity", 1.5, f"OptionError: sparsity is 1.5, {SHARE}"),
            ("tile", (0, 4, 4), f"OptionError: tile is (0, 4, 4), {THREE} The papers use (4, 4, 4)."),
            ("method", "best", "ArgumentError: unknown method 'best'. Known: bsa, sta, vsa."),
            ("method", None, f"OptionError: method is None, {METHOD}"),
            (
                "video_start",
                -1,
                "ArgumentError: video_start is -1, but it must be an integer >= 0: the number of tokens in "
                "front of the "
                "video.",
            ),
            (
                "video_start",
                1.0,
                "ArgumentError: video_start is 1.0, but it must be an integer >= 0: the number of tokens in "
                "front of the "
                "video.",
            ),
            ("q", None, f"ArgumentError: q is of type NoneType, but it must be a torch.Tensor, {QKV}"),
            ("k", [1.0], f"ArgumentError: k is of type list, but it must be a torch.Tensor, {QKV}"),
        )
    ),
    Row(
        "X24",
        "q of three dimensions (by hand)",
        by_hand(q=tensor(2, TOKENS, 16)),
        f"ArgumentError: q.shape is (2, 60, 16), but it must be {QKV}",
    ),
    Row(
        "X24",
        "a sparse (COO) q (by hand)",
        lambda: str(vsa_compile.attention(**arguments(q=tensor(1, 2, TOKENS, 16).to_sparse()))),
        "ArgumentError: q.layout is torch.sparse_coo, but it must be torch.strided. Call .to_dense(), or on "
        "a nested "
        "tensor .to_padded_tensor().",
    ),
    Row(
        "X24",
        "a gate for each token (by hand)",
        by_hand(gate=tensor(1, 2, TOKENS, 1)),
        "ArgumentError: gate.shape is (1, 2, 60, 1), but it must be q's shape (1, 2, 60, 16). Call "
        ".expand_as(q) on "
        "a gate that is shared.",
    ),
)

ROWS = (*OPTIONS, *OF_MODELS, *OF_PATCHES, *OF_RULES, *OF_METHODS)
