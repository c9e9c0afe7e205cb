"""X28-X31: tensor subclasses, torch's other ways to run a model, and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import vsa_compile

from .row import GRID, TILE, TOKENS, Row, Video, arguments, compiled, in_graph, itself, relative, tensor


class Wrapper(Tensor):
    """The least of a tensor subclass: holds a tensor, and runs every operator on it."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Wrapper:
        return Wrapper(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = tree_map_only(Wrapper, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*plain[0], **plain[1]))


def wrapped_by_hand() -> str:
    """Forward and backward give the bits of the tensors inside."""
    args = arguments()
    results = []
    for wrap in (Wrapper, torch.clone):
        leaves = {name: wrap(args[name]).requires_grad_() for name in ("q", "k", "v")}
        out = vsa_compile.attention(**args | leaves)
        out.sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values())])
    kinds = all(type(x) is Wrapper for x in results[0])
    equal = all(torch.equal(x.inner, y) for x, y in zip(*results, strict=True)) if kinds else False
    return "computed: a Wrapper with the same bits" if equal else "something else"


def distributed(check: Callable[[Tensor], str]) -> Callable[[], str]:
    """Calls `check` with a (2, 32, frames, rows, cols) DTensor of a group of one process."""

    def how() -> str:
        from torch import distributed as dist
        from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))
            return check(distribute_tensor(tensor(2, 32, *GRID), mesh, [Replicate()]))
        finally:
            dist.destroy_process_group()

    return how


def tokens_of(latents: Tensor) -> dict[str, Tensor]:
    q = latents.flatten(2).transpose(1, 2).unflatten(-1, (2, -1)).transpose(1, 2)
    return {"q": q, "k": q, "v": q}


SUBCLASSES = (
    Row("X28", "a wrapper subclass (by hand)", wrapped_by_hand, "computed: a Wrapper with the same bits"),
    Row(
        "X28",
        "a model on a wrapper subclass",
        in_graph(itself, latents=Wrapper(tensor(2, 32, *GRID))),
        "dense: the query, key or value is a Wrapper, not a plain tensor",
    ),
    Row(
        "X28",
        "a DTensor (by hand)",
        distributed(lambda x: str(vsa_compile.attention(**arguments(**tokens_of(x))))),
        "ArgumentError: q, k or v is a DTensor, but the sparse operator has no sharding rule. Call it on "
        ".to_local() "
        "where each rank holds all tokens of its batches or heads, or on .full_tensor(). Or pass sparsity=0 "
        "and no "
        "gate, which is dense SDPA.",
    ),
    Row(
        "X28",
        "a model on a DTensor",
        distributed(
            lambda x: vsa_compile.explain(Video(itself), x, options={"min_tokens": 0}).sites[0].reason
        ),
        "the query, key or value is a DTensor, not a plain tensor",
    ),
)


class ByHand(nn.Module):
    """(B, 32, frames, rows, cols) -> attention over them, the grid read from the shape."""

    def forward(self, latents: Tensor) -> Tensor:
        return vsa_compile.attention(**tokens_of(latents), grid=latents.shape[2:], sparsity=0.5, tile=TILE)


def exported(dynamic: bool) -> Callable[[], str]:
    def how() -> str:
        dim = torch.export.Dim
        sizes = {axis + 2: dim(name, min=3) for axis, name in enumerate(("frames", "rows", "cols"))}
        program = torch.export.export(
            ByHand(), (tensor(1, 32, 4, 5, 6),), dynamic_shapes=(sizes,) if dynamic else None
        )
        nodes = [
            node for node in program.graph.nodes if node.target is torch.ops.vsa_compile.attention.default
        ]
        grids = [(4, 5, 6), (3, 5, 7), (5, 3, 4)] if dynamic else [(4, 5, 6)]
        videos = [tensor(1, 32, *grid) for grid in grids]
        equal = all(torch.equal(program.module()(x), ByHand()(x)) for x in videos)
        return f"exported: {len(nodes)} node, the same bits" if equal else "other bits"

    return how


def exported_model() -> str:
    model, x = Video(itself), tensor(2, 32, *GRID)
    program = torch.export.export(model, (x,))
    report = vsa_compile.convert_exported(program, {"sparsity": 1e-6, "min_tokens": 0})
    same = relative(program.module()(x), model(x)) <= 1e-5
    return f"{report.converted} call sparse, {'equals dense attention' if same else 'wrong'}"


def exported_schedule() -> str:
    program = torch.export.export(Video(itself), (tensor(2, 32, *GRID),))
    return str(vsa_compile.convert_exported(program, {"sparsity": vsa_compile.SparsitySchedule(0.5)}))


def exported_already() -> str:
    """The module of a program, which looks like one."""
    return str(
        vsa_compile.convert_exported(torch.export.export(Video(itself), (tensor(2, 32, *GRID),)).module())
    )


def exported_typo() -> str:
    model = torch.compile(Video(itself), backend="vsa", options={"fallbak": "error"})
    return str(torch.export.export(model, (tensor(2, 32, *GRID),)))


def mapped() -> str:
    args = arguments()
    many = tensor(3, 1, 2, TOKENS, 16)
    got = torch.vmap(lambda q: vsa_compile.attention(**args | {"q": q}))(many)
    wanted = torch.stack([vsa_compile.attention(**args | {"q": q}) for q in many])
    return "computed: the same bits as one by one" if torch.equal(got, wanted) else "other bits"


def total(q: Tensor, **keywords: Any) -> Tensor:
    return vsa_compile.attention(**arguments(q=q) | keywords).square().sum()


def gradient_of_dense() -> str:
    q = arguments()["q"]
    leaf = q.clone().requires_grad_()
    total(leaf, sparsity=0).backward()
    same = torch.equal(torch.func.grad(lambda x: total(x, sparsity=0))(q), leaf.grad)
    return "computed: the same bits as backward" if same else "other bits"


def functional_gradient_of(model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.func.grad(lambda x: model(x).square().sum())


def grad_of_compiled() -> str:
    """torch.func.grad around the compiled model; `compiled` compares the model's own call."""
    found: list[Any] = []

    def spy(module: torch.fx.GraphModule, _: Any) -> Callable:
        found.extend(vsa_compile.backend.convert(module, vsa_compile.Options.read({"min_tokens": 0})))
        return module.forward

    model, x = Video(itself), tensor(2, 32, *GRID)
    got = functional_gradient_of(torch.compile(model, backend=spy))(x)
    same = torch.equal(got, functional_gradient_of(model)(x)) and not found
    return "dense: torch compiles nothing here" if same else "converted, or another gradient"


NO_RULE = "Differentiate with .backward() or torch.autograd.grad, or pass sparsity=0, which is dense SDPA."
PROGRAM = (
    "but it must be a torch.export.ExportedProgram. Make one with torch.export.export(model, args), or "
    "torch.export.load a file."
)
TRANSFORMS = (
    Row(
        "X29", "torch.export of attention by hand", exported(dynamic=False), "exported: 1 node, the same bits"
    ),
    Row(
        "X29",
        "torch.export of attention by hand, the grid symbolic",
        exported(dynamic=True),
        "exported: 1 node, the same bits",
    ),
    Row(
        "X29",
        "an exported model, then convert_exported",
        exported_model,
        "1 call sparse, equals dense attention",
    ),
    Row(
        "X29",
        "convert_exported with a SparsitySchedule",
        exported_schedule,
        "OptionError: sparsity is a SparsitySchedule, but an exported program runs in processes that do not "
        "have it. Pass a number, such as schedule.sparsity for the current step's.",
    ),
    *(
        Row(
            "X29",
            f"convert_exported({given!r})",
            lambda given=given: str(vsa_compile.convert_exported(given)),
            f"ArgumentError: program is {type(given).__name__!r}, {PROGRAM}",
        )
        for given in (3, None, "x.pt2")
    ),
    Row(
        "X29",
        "convert_exported(program.module())",
        exported_already,
        f"ArgumentError: program is 'GraphModule', {PROGRAM}",
    ),
    Row(
        "X29",
        "torch.export of a model compiled with a mistyped option",
        exported_typo,
        "OptionError: unknown option 'fallbak'; did you mean 'fallback'? Known: dense_layers, fallback, ...",
    ),
    Row("X30", "torch.vmap over attention", mapped, "computed: the same bits as one by one"),
    Row(
        "X30",
        "torch.func.grad of attention",
        lambda: str(torch.func.grad(total)(arguments()["q"])),
        f"ArgumentError: the sparse attention kernel has no rule for torch.func.grad, vjp and jacrev. "
        f"{NO_RULE}",
    ),
    Row(
        "X30",
        "torch.func.jvp of attention",
        lambda: str(torch.func.jvp(total, (arguments()["q"],), (arguments()["q"],))),
        "ArgumentError: the sparse attention kernel has no rule for forward-mode differentiation "
        "(torch.func.jvp). "
        f"{NO_RULE}",
    ),
    Row(
        "X30",
        "torch.func.grad of attention with sparsity=0",
        gradient_of_dense,
        "computed: the same bits as backward",
    ),
    Row(
        "X30",
        "a compiled model that calls torch.func.grad inside",
        lambda: compiled(functional_gradient_of(Video(itself)), (tensor(2, 32, *GRID),), {}),
        "dense: the graph is under a torch.func transform",
    ),
    Row(
        "X30",
        "a compiled model that calls torch.vmap inside",
        lambda: compiled(torch.vmap(Video(itself)), (tensor(2, 1, 32, *GRID),), {}),
        "dense: the graph is under a torch.func transform",
    ),
    Row("X30", "torch.func.grad of a compiled model", grad_of_compiled, "dense: torch compiles nothing here"),
)


def two_threads() -> str:
    """Each compiles a model of its own grid, and calls attention by hand, at the same time."""
    outcomes: list[str] = []
    alone = {frames: ByHand()(tensor(2, 32, frames, 4, 5)) for frames in (3, 6)}
    together = threading.Barrier(2)

    def work(frames: int) -> None:
        x = tensor(2, 32, frames, 4, 5)
        settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6})

        def spy(module: torch.fx.GraphModule, _: Any) -> Callable:
            vsa_compile.backend.convert(module, settings)
            return module.forward

        model = Video(itself)
        sparse = torch.compile(model, backend=spy)
        together.wait(60)
        for _ in range(5):
            same = torch.equal(ByHand()(x), alone[frames]) and relative(sparse(x), model(x)) <= 1e-5
            outcomes.append("the same as alone" if same else "another result")

    threads = [threading.Thread(target=work, args=(frames,)) for frames in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (outcome,) = set(outcomes) if len(outcomes) == 10 else {"a thread failed"}
    count = torch._dynamo.utils.counters["vsa_compile"]["converted"]
    return f"{outcome}; {count} calls converted"


THREADS = (
    Row(
        "X31",
        "two threads that compile and run models at once",
        two_threads,
        "the same as alone; 2 calls converted",
    ),
)

ROWS = (*SUBCLASSES, *TRANSFORMS, *THREADS)
