"""The same bits every time: run again, replayed from a CUDA graph, compiled with mode="reduce-overhead"."""

import pytest
import torch
from attend_cases import Case, assert_same_bits, needs_gpu, through_autograd
from attend_judge import assert_right

from gpu.generator import Program, call, program
from vsa_compile import attention, vsa

pytestmark = [pytest.mark.gpu, needs_gpu]
DRAWN = [program(number) for number in (0, 4, 8, 9, 13)]  # every dtype, every layout
GRID = (8, 12, 10)


def compiled(drawn: Program):
    return torch.compile(drawn.attend(), backend=vsa, fullgraph=True, dynamic=False)


def scribbled(device: str) -> None:
    """Memory that is allocated next holds something else than last time."""
    written = [torch.full((1 << 20,), torch.nan, device=device) for _ in range(8)]
    del written


@pytest.mark.parametrize("drawn", DRAWN, ids=str)
def test_two_runs_have_the_same_bits(drawn: Program):
    case, attend = drawn.on("cuda", drawn.case(0)), call(compiled(drawn))
    first = through_autograd(attend, case)
    for _ in range(3):
        scribbled("cuda")
        assert_same_bits(through_autograd(attend, case), first)


def test_two_runs_at_a_real_size_have_the_same_bits():
    """Enough programs to keep every processor busy, in an order that differs from run to run."""
    shape = (1, 8, 16 * 24 * 20, 64)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    grad = torch.randn_like(q)
    run = torch.compile(
        lambda q, k, v: attention(q, k, v, grid=(16, 24, 20), sparsity=0.75), backend=vsa, fullgraph=True
    )

    def results() -> list[torch.Tensor]:
        out = run(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)]

    first = results()
    for _ in range(10):
        assert all(got.equal(wanted) for got, wanted in zip(results(), first, strict=True))


@pytest.mark.parametrize("drawn", DRAWN, ids=str)
def test_a_cuda_graph_replays_forward_and_backward(drawn: Program):
    """Captured on one case's numbers, replayed on another's of the same shapes."""
    attend, case = call(compiled(drawn)), drawn.on("cuda", drawn.case(0))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            through_autograd(attend, case)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = through_autograd(attend, case)
    for seed in range(3):
        refilled(case, seed)
        graph.replay()
        torch.cuda.synchronize()
        replayed = {name: x.clone() for name, x in captured.items()}
        assert_same_bits(replayed, through_autograd(attend, case))
        assert_right(case.to("cpu"), {name: x.cpu() for name, x in replayed.items()})


def refilled(case: Case, seed: int) -> None:
    """New numbers in the same memory; of an expanded tensor the batch that is there."""
    torch.manual_seed(seed)
    for x in (case.q, case.k, case.v, case.grad_out):
        written = x[:1] if x.stride(0) == 0 else x
        written.copy_(torch.randn_like(written, memory_format=torch.contiguous_format))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_reduce_overhead_equals_the_plain_mode(dtype):
    """CUDA graph trees, over several steps with other numbers, forward and backward."""

    def whole(q, k, v, gate):
        return attention(q, k, v, gate=gate, grid=GRID, sparsity=0.75)

    results = []
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        run = torch.compile(whole, backend=vsa, fullgraph=True, dynamic=False, options={"mode": mode})
        source, steps = torch.Generator("cuda").manual_seed(0), []
        for _ in range(5):
            torch.compiler.cudagraph_mark_step_begin()
            leaves = [
                torch.randn(1, 4, 960, 64, device="cuda", generator=source, dtype=dtype).requires_grad_()
                for _ in range(4)
            ]
            out = run(*leaves)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
            steps.append([x.detach().clone() for x in (out, *grads)])
        results.append(steps)
    for plain, graphed in zip(*results, strict=True):
        assert all(x.equal(y) for x, y in zip(plain, graphed, strict=True))
