"""Trainable gates: where they are put, what they add, what they survive."""

import copy
import pickle
from operator import attrgetter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from converting import converting
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile import ArgumentError, add_gates
from vsa_compile.convert.judge import Conversion, Decision

OPTIONS = {"min_tokens": 0, "sparsity": 0.5, "tile": (2, 2, 2)}
GRID = (3, 4, 5)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(model: nn.Module, then: str = "aot_eager", **options) -> tuple[nn.Module, list]:
    graphs: list[list[Decision]] = []
    return torch.compile(model, backend=converting(graphs, then, **OPTIONS | options)), graphs


def opened(model: nn.Module, *args: Any) -> list[nn.Parameter]:
    """Gates with random weights, as after some training."""
    parameters = add_gates(model, *args, options=OPTIONS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return parameters


class Attention(nn.Module):
    """[video | text] whose queries come from two projections; `by_hand` writes the gate out."""

    def __init__(self, joint: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.joint = joint
        self.to_q, self.to_k, self.to_v = (nn.Linear(32, 32) for _ in range(3))
        self.text_q = nn.Linear(32, 32)
        self.norm = nn.RMSNorm(32)

    def forward(self, latents: Tensor, text: Tensor, sparsity: float | None = None) -> Tensor:
        x = latents.flatten(2).transpose(1, 2)
        every = torch.cat([x, text], dim=1)
        q = torch.cat([self.to_q(x), self.text_q(text)], dim=1) if self.joint else self.to_q(every)
        turned = torch.empty_like(q)  # as rotary embeddings are written in many models
        turned[..., 0::2], turned[..., 1::2] = -self.norm(q)[..., 1::2], self.norm(q)[..., 0::2]
        q, k, v = (
            2 * y.unflatten(-1, (2, 16)).transpose(1, 2) for y in (turned, self.to_k(every), self.to_v(every))
        )
        if sparsity is None:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        gate = self.to_gate_compress(x if self.joint else every)
        gate = F.pad(gate, (0, 0, 0, every.shape[1] - gate.shape[1]))
        gate = gate.unflatten(-1, (2, 16)).transpose(1, 2)
        every_key = torch.ones(1, every.shape[1], dtype=torch.bool)
        out = vsa_compile.attention(
            q, k, v, gate=gate, grid=GRID, sparsity=sparsity, tile=(2, 2, 2), key_padding_mask=every_key
        )
        return out.transpose(1, 2).flatten(2)


ARGUMENTS = {"latents": torch.randn(2, 32, *GRID), "text": torch.randn(2, 7, 32)}


# --- What a gate adds --------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("joint", "sparsity", "then"),
    [
        (True, 0.5, "aot_eager"),
        pytest.param(True, 0.5, "inductor", marks=pytest.mark.slow),
        (False, 0.5, "aot_eager"),
        (True, 0, "aot_eager"),
    ],
    ids=["of the video", "of the video, by Inductor", "of all queries", "dense"],
)
def test_a_gate_adds_what_is_written_out_by_hand(joint: bool, sparsity: float, then: str):
    model = Attention(joint)
    opened(model, *ARGUMENTS.values())
    run, graphs = compiled(model, then, sparsity=sparsity)
    got, got_grads = output_and_gradients(run, **ARGUMENTS)
    wanted, wanted_grads = output_and_gradients(model, **ARGUMENTS, sparsity=sparsity)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)
    assert [isinstance(one, Conversion) for (one,) in graphs] == [True]


@pytest.mark.parametrize(
    "habits",
    [
        Habits(blocks=2),
        Habits(text="before", mask=True),
        Habits(text="after", checkpointed=True, blocks=2),
        pytest.param(Habits(fused=True), marks=pytest.mark.slow),
        pytest.param(Habits(groups=2, spelling="positional"), marks=pytest.mark.slow),
    ],
    ids=["plain", "before", "checkpointed", "fused", "grouped"],
)
def test_new_gates_change_nothing_and_all_of_them_learn(habits: Habits):
    model, arguments = ToyDiT(habits), inputs(habits)
    with torch.no_grad():
        eager, before = model(*arguments), compiled(model)[0](*arguments)
    names = set(dict(model.named_parameters()))
    parameters = add_gates(model, *arguments, options=OPTIONS)
    assert set(dict(model.named_parameters())) - names == {
        f"blocks.{i}.to_gate_compress.{kind}" for i in range(habits.blocks) for kind in ("weight", "bias")
    }
    assert torch.equal(model(*arguments), eager)
    for around in (vsa_compile.dense, torch.enable_grad):
        model.zero_grad()
        with around():
            out = compiled(model)[0](*arguments)
            assert_same_output(out.detach(), eager if around is vsa_compile.dense else before)
            out.square().sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in parameters)


def test_dense_attention_beside_a_gate_when_sparsity_is_zero():
    """Else DistributedDataParallel would find a parameter without a gradient."""
    model = Attention()
    parameters = add_gates(model, *ARGUMENTS.values(), options=OPTIONS)
    run, _ = compiled(model, sparsity=0)
    out = run(**ARGUMENTS)
    assert_same_output(out.detach(), model(**ARGUMENTS).detach())
    out.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)


# --- What it survives --------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_gates_that_are_added_to_compiled_code_are_used():
    model = Attention()
    run, graphs = compiled(model)
    before = run(**ARGUMENTS)
    opened(model, *ARGUMENTS.values())
    assert not torch.equal(run(**ARGUMENTS), before)
    assert len(graphs) == 2


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "how",
    [copy.deepcopy, pytest.param(lambda model: pickle.loads(pickle.dumps(model)), marks=pytest.mark.slow)],
)
def test_a_copy_has_gates_of_its_own(how):
    model = Attention()
    opened(model, *ARGUMENTS.values())
    twin = how(model)
    before, same = compiled(model)[0](**ARGUMENTS), compiled(twin)[0](**ARGUMENTS)
    assert torch.equal(before, same)
    nn.init.zeros_(twin.to_gate_compress.weight)
    assert torch.equal(compiled(model)[0](**ARGUMENTS), before)
    assert not torch.equal(compiled(twin)[0](**ARGUMENTS), before)


@pytest.mark.no_cover
def test_checkpoints_with_gates_and_without():
    model, plain, fresh = Attention(), Attention(), Attention()
    opened(model, *ARGUMENTS.values())
    add_gates(fresh, *ARGUMENTS.values(), options=OPTIONS)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(compiled(fresh)[0](**ARGUMENTS), compiled(model)[0](**ARGUMENTS))
    fresh.load_state_dict(plain.state_dict())
    assert all(not p.any() for p in fresh.to_gate_compress.parameters())


def test_gates_made_on_meta_are_real_when_a_checkpoint_without_them_is_loaded():
    model, plain = Attention().to("meta"), Attention()
    add_gates(model, *(x.to("meta") for x in ARGUMENTS.values()), options=OPTIONS)
    assert model.to_gate_compress.weight.is_meta
    model.load_state_dict(plain.to(torch.float64).state_dict(), assign=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.to_gate_compress.weight.dtype == torch.float64
    wide = {name: x.double() for name, x in ARGUMENTS.items()}
    assert_same_output(compiled(model)[0](**wide), compiled(plain)[0](**wide))


@pytest.mark.parametrize("strict", [True, False])
def test_gates_that_a_checkpoint_keeps_beside_the_projection_load(strict: bool, recwarn):
    """`blocks.0.attn.to_gate_compress`, as FastVideo calls them in LTX-2 and MiniMax-H3."""
    habits = Habits(blocks=2)
    model, fresh = ToyDiT(habits), ToyDiT(habits)
    opened(model, *inputs(habits))
    add_gates(fresh, *inputs(habits), options=OPTIONS)
    saved = {
        name.replace("to_gate_compress", "attn.to_gate_compress"): x for name, x in model.state_dict().items()
    }
    assert "blocks.1.attn.to_gate_compress.bias" in saved
    fresh.load_state_dict(saved, strict=strict)
    for name, x in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], x)
    assert not recwarn.list


def test_gates_of_a_checkpoint_that_nothing_takes_are_named():
    habits = Habits(blocks=2)
    model = ToyDiT(habits)
    add_gates(model, *inputs(habits), options=OPTIONS | {"dense_layers": (1,)})
    saved = model.state_dict() | {"blocks.1.to_gate_compress.weight": torch.ones(64, 64)}
    with pytest.warns(
        UserWarning, match=r"the model has no gate for: blocks\.1\.to_gate_compress\. The model"
    ):
        model.load_state_dict(saved, strict=False)


@pytest.mark.parametrize("late", [True, False])
def test_an_optimizer_that_was_made_before_the_gates_is_told(late: bool, recwarn):
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    gates = add_gates(model, *ARGUMENTS.values(), options=OPTIONS)
    others = [] if late else [torch.optim.SGD(gates, lr=1e-3)]
    run, _ = compiled(model)
    for _ in range(3):
        run(**ARGUMENTS).square().sum().backward()
        for one in (optimizer, *others):
            one.step()
    said = [str(one.message) for one in recwarn.list if "no optimizer has them" in str(one.message)]
    assert len(said) == late


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda model: model, marks=pytest.mark.slow),
        pytest.param(copy.deepcopy, marks=pytest.mark.slow),
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
)
def test_gates_are_removed_without_a_trace(how):
    model, plain = Attention(), Attention()
    before = set(vars(model.to_q))
    wanted = compiled(plain)[0](**ARGUMENTS)
    run, _ = compiled(model)
    opened(model, *ARGUMENTS.values())
    model = how(model)
    assert not torch.equal(compiled(model)[0](**ARGUMENTS), wanted)
    assert vsa_compile.remove_gates(model) is model
    assert_same_output(compiled(model)[0](**ARGUMENTS), wanted)
    assert_same_output(run(**ARGUMENTS), run(**ARGUMENTS))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert set(vars(model.to_q)) == before
    assert not any((model.to_q._forward_hooks, model._load_state_dict_pre_hooks))
    model.load_state_dict(plain.state_dict())
    assert len(add_gates(model, *ARGUMENTS.values(), options=OPTIONS)) == 2


@pytest.mark.no_cover
def test_compiled_code_hears_that_gates_are_gone():
    model = Attention()
    run, graphs = compiled(model)
    before = run(**ARGUMENTS)
    opened(model, *ARGUMENTS.values())
    run(**ARGUMENTS)
    vsa_compile.remove_gates(model)
    assert torch.equal(run(**ARGUMENTS), before)
    assert len(graphs) == 3


def test_a_second_call_adds_what_is_missing():
    model, arguments = ToyDiT(Habits(blocks=2)), inputs(Habits(blocks=2))
    first = add_gates(model, *arguments, options=OPTIONS | {"dense_layers": (1,)})
    second = add_gates(model, *arguments, options=OPTIONS)
    assert [len(first), len(second), len(add_gates(model, *arguments, options=OPTIONS))] == [2, 2, 0]
    assert len(model.blocks[0].attn.to_q._forward_hooks) == 1


@pytest.mark.no_cover
def test_blocks_that_are_compiled_one_by_one():
    model, arguments = ToyDiT(Habits(blocks=2)), inputs(Habits(blocks=2))
    opened(model, *arguments)
    wanted = compiled(model)[0](*arguments)
    vsa_compile.prepare(model)
    graphs: list = []
    for block in model.blocks:
        block.compile(backend=converting(graphs, **OPTIONS))
    assert_same_output(model(*arguments), wanted)


@pytest.mark.no_cover
@pytest.mark.parametrize("place", [{}, {"start": 8, "tokens": 68}], ids=["alone", "behind others"])
def test_calls_that_a_hint_makes_sparse_get_gates(place: dict[str, int]):
    """A block alone shows no grid."""
    block, graphs = ToyDiT(Habits()).blocks[0], []
    x = torch.randn(1, place.get("tokens", 60), 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match="no attention call of this model can be given a gate"):
        add_gates(block, x, None, options={"min_tokens": 0})
    with vsa_compile.video_grid(3, 4, 5, **place):
        weight, bias = add_gates(block, x, None, options={"min_tokens": 0})
        torch.compile(block, backend=converting(graphs))(x, None).square().sum().backward()
    ((conversion,),) = graphs
    assert isinstance(conversion, Conversion)
    assert conversion.gate is not None
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_a_projection_under_an_adapter():
    peft = pytest.importorskip("peft")
    model = Attention()
    opened(model, *ARGUMENTS.values())
    wanted = compiled(model)[0](**ARGUMENTS)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"])
    adapted = peft.get_peft_model(model, config)
    run, graphs = compiled(adapted)
    assert_same_output(run(**ARGUMENTS), wanted)
    assert all(isinstance(one, Conversion) and one.gate for (one,) in graphs)


@pytest.mark.no_cover
@pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning")
def test_markers_survive_that_their_hooks_are_registered_anew_without_keywords():
    """As quantize_dynamic does it, which copies hooks and not how they are called."""
    model = Attention()
    opened(model, *ARGUMENTS.values())
    wanted = compiled(model)[0](**ARGUMENTS)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    quantized(**ARGUMENTS)
    assert not vsa_compile.remove_gates(quantized).to_q._forward_hooks
    ((key, hook),) = model.to_q._forward_hooks.items()
    del model.to_q._forward_hooks[key], model.to_q._forward_hooks_with_kwargs[key]
    model.to_q.register_forward_hook(hook)
    assert_same_output(compiled(model)[0](**ARGUMENTS), wanted)
    assert hook(model.to_q, (), torch.ones(1)) is None  # a call by keyword: the hook is not told of its input


# --- Where it is put ---------------------------------------------------------------------------------


class Queries(nn.Module):
    """Attention over a video whose queries are made in one way or another."""

    def __init__(self, how: str = "called", width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.twin = nn.Linear(width, 32), nn.Linear(width, 32)
        self.twin.weight = self.to_q.weight
        self.how, self.also = how, False

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.flatten(2).transpose(1, 2)
        q = self.queries(x).unflatten(-1, (2, 16)).transpose(1, 2)
        k = x[..., :32].unflatten(-1, (2, 16)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, k)
        if self.also:
            q = self.twin(x).unflatten(-1, (2, 16)).transpose(1, 2)
            out = out + F.scaled_dot_product_attention(q, k, k)
        return out

    def queries(self, x: Tensor) -> Tensor:
        if self.how == "by weight":
            return F.linear(x, self.to_q.weight, self.to_q.bias)
        return self.to_q.forward(x) if self.how == "by forward" else self.to_q(x)


VIDEO_OF = {width: torch.randn(1, width, *GRID) for width in (32, 48)}


def gate_names(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if "to_gate_compress" in name]


@pytest.mark.parametrize("how", ["by weight", "by forward"])
def test_a_layer_that_is_not_called_gets_no_gate(how: str):
    """Its hooks would never run: the gate would get no gradient, without a word."""
    inner = Queries(how)
    model = nn.Sequential(inner)  # what is called makes the queries, and their attention too
    with pytest.raises(ArgumentError, match=r"of its queries is not called.* q = self\.to_q"):
        add_gates(model, VIDEO_OF[32], options=OPTIONS)
    assert not gate_names(model)
    inner.also = True
    with pytest.warns(UserWarning, match="stay without a gate: 0: the layer of its queries is not called"):
        assert len(add_gates(model, VIDEO_OF[32], options=OPTIONS)) == 2
    assert not inner.to_q._forward_hooks
    assert inner.twin._forward_hooks


def test_of_layers_that_share_a_weight_the_one_that_is_called_gets_the_gate():
    model = Queries()
    add_gates(model, VIDEO_OF[32], options=OPTIONS)
    assert model.to_q._forward_hooks
    assert not model.twin._forward_hooks


@pytest.mark.parametrize(
    "normalize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(nn.utils.spectral_norm, id="spectral_norm_of_hooks"),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    ],
)
def test_a_projection_whose_weight_is_computed(normalize: Any):
    model = Queries()
    model.to_q, model.twin = normalize(nn.Linear(32, 32)), nn.Identity()
    parameters = add_gates(model, VIDEO_OF[32], options=OPTIONS)
    assert [parameter.shape for parameter in parameters] == [(32, 32), (32,)]
    compiled(model)[0](VIDEO_OF[32]).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)
    assert add_gates(model, VIDEO_OF[32], options=OPTIONS) == []


@pytest.mark.parametrize("how", ["new", "copied alone"])
def test_the_gate_of_a_projection_that_is_replaced(how: str):
    """As adapters and quantization replace it. Its marker is gone, or marks with another gate."""
    model, names = Queries(), gate_names(Queries())
    (weight, bias) = opened(model, VIDEO_OF[32])
    wanted = weight.clone()
    before = model.to_q
    model.to_q = nn.Linear(32, 32) if how == "new" else copy.deepcopy(before)
    assert add_gates(model, VIDEO_OF[32], options=OPTIONS) == []  # none is new
    assert model.to_gate_compress.weight is weight
    assert torch.equal(weight, wanted)
    assert len(model.to_q._forward_hooks) == 1
    compiled(model)[0](VIDEO_OF[32]).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (weight, bias))
    model.to_q = nn.Linear(32, 32) if how == "new" else copy.deepcopy(before)
    assert gate_names(vsa_compile.remove_gates(model)) == names
    assert not any((model.to_q._forward_hooks, model._load_state_dict_pre_hooks))


def test_a_gate_that_does_not_fit_the_new_projection_is_replaced():
    model = Queries()
    add_gates(model, VIDEO_OF[32], options=OPTIONS)
    model.to_q = nn.Linear(48, 32)
    parameters = add_gates(model, VIDEO_OF[48], options=OPTIONS)
    assert [*model.to_gate_compress.parameters()] == parameters
    assert parameters[0].shape == (32, 48)


def test_a_block_whose_projection_goes_to_another_place_has_one_gate():
    model, arguments = ToyDiT(), inputs(Habits())
    opened(model, *arguments)
    names = gate_names(model)
    model.blocks[0].attn.to_q = nn.Sequential(nn.Linear(64, 64))
    assert not any(parameter.any() for parameter in add_gates(model, *arguments, options=OPTIONS))
    assert gate_names(model) == names


@pytest.mark.parametrize("way", [nn.Sequential, lambda *layers: nn.ModuleList(layers)])
def test_containers_are_given_no_gates(way: Any):
    """They would run them, or count them."""
    model = Queries()
    model.to_q = way(nn.Linear(32, 32), nn.Identity())
    model.queries = lambda x: model.to_q[0](x) if isinstance(model.to_q, nn.ModuleList) else model.to_q(x)
    plain, wanted = copy.deepcopy(model.state_dict()), model(VIDEO_OF[32])
    parameters = opened(model, VIDEO_OF[32])
    assert len(model.to_q) == 2
    assert torch.equal(model(VIDEO_OF[32]), wanted)
    compiled(model)[0](VIDEO_OF[32]).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)
    model.load_state_dict(plain)
    assert not any(parameter.any() for parameter in parameters)
    assert list(vsa_compile.remove_gates(model).state_dict()) == list(plain)


class Projects(nn.Linear):
    """A projection that takes and returns what `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__(64 if way == "wide" else 32, 32)
        self.way = way

    def forward(self, first: Any, hidden: Any = None, scale: float = 1.0) -> Any:
        if self.way == "tuple":
            return super().forward(first), None
        if self.way == "wide":
            return super().forward(torch.cat([first, first], -1))
        x = first[0] if self.way == "list" else first if hidden is None else hidden * (1 + first)
        return super().forward(x) * scale


CALLS: dict[str, Any] = {
    "plain": lambda to_q, x: to_q(x),
    "keywords": lambda to_q, x: to_q(scale=2.0, first=x),
    "second": lambda to_q, x: to_q(x.mean(1, True), x),
    "second by keyword": lambda to_q, x: to_q(first=x.mean(1, True), hidden=x),
    "tuple": lambda to_q, x: to_q(x)[0],
    "list": lambda to_q, x: to_q([x]),
    "wide": lambda to_q, x: to_q(x),
    "two alike": lambda to_q, x: to_q(x.sin(), x),
}


def queries_by(way: str) -> Queries:
    model = Queries()
    model.to_q = Projects(way)
    model.queries = lambda x: CALLS[way](model.to_q, x)
    return model


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("way", ["plain", "keywords", "second", "second by keyword"])
def test_a_gate_multiplies_the_hidden_states_wherever_they_are_passed(way: str, dynamic: bool):
    model = queries_by(way)
    (weight, bias) = opened(model, VIDEO_OF[32])
    graphs: list[list[Decision]] = []
    run = torch.compile(model, backend=converting(graphs, **OPTIONS), dynamic=dynamic)
    x = VIDEO_OF[32].flatten(2).transpose(1, 2)
    with_gate = run(VIDEO_OF[32])
    ((one,),) = graphs
    assert isinstance(one, Conversion)
    with torch.no_grad():
        q, k = (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in (model.queries(x), x))
        gate = F.linear(x, weight, bias).unflatten(-1, (2, 16)).transpose(1, 2)
        wanted = vsa_compile.attention(q, k, k, gate=gate, grid=GRID, sparsity=0.5, tile=(2, 2, 2))
    assert_same_output(with_gate.detach(), wanted)


@pytest.mark.parametrize("way", ["tuple", "list", "wide", "two alike"])
def test_a_projection_that_a_gate_cannot_follow_gets_none(way: str):
    model = queries_by(way)
    names = [*model.state_dict()]
    with pytest.raises(ArgumentError, match="does not take its hidden states as the one tensor"):
        add_gates(model, VIDEO_OF[32], options=OPTIONS)
    assert [*model.state_dict()] == names
    assert not model.to_q._forward_hooks
    model.also = True
    with pytest.warns(UserWarning, match="stay without a gate: a call: the layer of its queries does not"):
        assert len(opened(model, VIDEO_OF[32])) == 2
    assert not model.to_q._forward_hooks
    run, graphs = compiled(model)
    run(VIDEO_OF[32])
    assert [isinstance(one, Conversion) and one.gate is not None for one in graphs[0]] == [False, True]


def test_a_projection_that_is_called_in_another_way_later_stays_without_its_gate():
    model = queries_by("plain")
    opened(model, VIDEO_OF[32])
    for way in ("tuple", "list", "two alike"):
        model.queries, model.to_q.way = lambda x, way=way: CALLS[way](model.to_q, x), way
        torch._dynamo.reset()
        run, graphs = compiled(model)
        run(VIDEO_OF[32])
        ((one,),) = graphs
        assert isinstance(one, Conversion)
        assert one.gate is None


# --- What is refused ---------------------------------------------------------------------------------


class Marked(nn.Module):
    """Marks queries by hand, wrongly."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.gate = nn.Linear(32, 16 if wrong == "shape" else 32)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        x = latents.flatten(2).transpose(1, 2)
        gate = self.gate(text if self.wrong == "tokens" else x)
        marked = torch.ops.vsa_compile.gate(x, gate)
        if self.wrong == "twice":
            marked = torch.ops.vsa_compile.gate(marked * 2, gate)
        q = marked.unflatten(-1, (2, 16)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, q, q)
        return out + F.scaled_dot_product_attention(q.sin(), q, q) if self.wrong == "shared" else out


@pytest.mark.parametrize("wrong", ["shape", "tokens", "shared"])
def test_a_gate_that_does_not_fit_is_refused(wrong: str):
    model, arguments = Marked(wrong), (torch.randn(2, 32, *GRID), torch.randn(2, 60, 32))
    run, graphs = compiled(model)
    assert_same_output(run(*arguments), model(*arguments))
    assert {one.reason.slug for one in graphs[0]} == {f"gate-{wrong}"}


class CheckpointsItsAttention(nn.Module):
    """The query projection outside of what is checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q = nn.Linear(32, 32)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.flatten(2).transpose(1, 2)
        q = self.to_q(x).unflatten(-1, (2, 16)).transpose(1, 2)
        k = x.unflatten(-1, (2, 16)).transpose(1, 2)
        return checkpoint(F.scaled_dot_product_attention, q, k, k, use_reentrant=False)


class CheckpointsItsProjection(CheckpointsItsAttention):
    """The attention call outside of what is checkpointed, from a certain time on."""

    checkpoints = False

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.flatten(2).transpose(1, 2)
        q = checkpoint(self.to_q, x, use_reentrant=False) if self.checkpoints else self.to_q(x)
        q, k = (one.unflatten(-1, (2, 16)).transpose(1, 2) for one in (q, x))
        return F.scaled_dot_product_attention(q, k, k)


def test_a_gate_inside_of_what_is_checkpointed_without_its_call_is_refused():
    model, x = CheckpointsItsProjection(), torch.randn(2, 32, *GRID)
    opened(model, x)
    model.checkpoints = True
    run, graphs = compiled(model)
    assert_same_output(run(x), model(x))
    ((one,),) = graphs
    assert one.reason.slug == "gate-inside"
    assert "let the checkpoint span the attention call" in one.reason.text


def test_a_gate_outside_of_a_checkpointed_call_is_refused():
    model, x = CheckpointsItsAttention(), torch.randn(2, 32, *GRID)
    run, graphs = compiled(model)
    assert_same_output(run(x), compiled(CheckpointsItsAttention())[0](x))
    assert [type(one) for one in graphs[0]] == [Conversion]
    opened(model, x)
    out = run(x)
    assert_same_output(out, model(x))
    out.sum().backward()
    (one,) = graphs[-1]
    assert one.reason.slug == "gate-outside"
    assert "let the checkpoint span the query projection" in one.reason.text
    vsa_compile.remove_gates(model)  # the other way out
    run(x)
    assert [type(one) for one in graphs[-1]] == [Conversion]


def test_a_model_without_a_sparse_call_is_an_error():
    with pytest.raises(ArgumentError, match="no attention call of this model can be given a gate"):
        add_gates(nn.Linear(3, 3), torch.randn(2, 3))
    for function in (add_gates, vsa_compile.remove_gates):
        with pytest.raises(ArgumentError, match=r"must be a torch\.nn\.Module"):
            function(lambda x: x)


# --- Real models -------------------------------------------------------------------------------------


pytest.importorskip("diffusers")
from zoo import VIDEO  # noqa: E402

# Ways to write the projections: fused, with its text.
PROJECTIONS = ("wan_fused", "cogvideox_5b")


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.name in PROJECTIONS else pytest.mark.slow) for case in VIDEO],
    ids=attrgetter("name"),
)
def test_every_site_of_a_real_model_gets_a_gate(case):
    model, arguments = case.build()
    kwargs = arguments(case.grid)
    parameters = add_gates(model, options=OPTIONS, **kwargs)
    assert len(parameters) == 2 * case.sites
    torch.nn.init.normal_(parameters[0], std=0.2)
    graphs: list = []
    with torch.no_grad():
        torch.compile(model, backend=converting(graphs))(**kwargs)
    found = [one for graph in graphs for one in graph if isinstance(one, Conversion)]
    assert len(found) == case.sites
    assert all(one.gate is not None for one in found)


@pytest.mark.no_cover
def test_a_saved_diffusers_model_holds_its_gates(tmp_path):
    from safetensors.torch import load_file

    case = next(case for case in VIDEO if case.name.startswith("wan"))
    model, arguments = case.build()
    kwargs = arguments(case.grid)
    add_gates(model, options=OPTIONS, **kwargs)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {"blocks.0.to_gate_compress.weight", "blocks.0.to_gate_compress.bias"} <= set(saved)
    again = type(model).from_pretrained(tmp_path)
    add_gates(again, options=OPTIONS, **kwargs)
    again.load_state_dict(saved)
    outputs = []
    for one in (model, again):
        with torch.no_grad():
            outputs.append(torch.compile(one, backend=converting([], **OPTIONS))(**kwargs)[0])
    assert torch.equal(*outputs)
