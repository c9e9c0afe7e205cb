"""One of two processes that train together over gloo: `python trainers_worker.py RANK STORE RESULTS`.

Runs every case and writes what went wrong in it. The reference is the uncompiled model of one process, whose
attention is called by hand.
"""

import json
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from compare import assert_same_gradients, assert_same_output
from converting import converting
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from trainers import OPTIONS, by_hand, clips, gated, gradients, loss_of, trained_on

import vsa_compile
from vsa_compile.convert.judge import Conversion

WORLD = 2


class Run:
    """One model in both processes: two steps without an update, on a clip for each process."""

    def __init__(self, sparsity: float = 0.5) -> None:
        self.model, self.graphs, self.sparsity = gated(), [], sparsity
        self.backend = converting(self.graphs, "aot_eager", **OPTIONS | {"sparsity": sparsity})

    def check(self, run: nn.Module, around: AbstractContextManager | None = None) -> None:
        (x,) = clips(WORLD)
        with by_hand(gated(), sparsity=0 if around else self.sparsity) as reference:
            wanted_loss, wanted = trained_on(reference, x)
        with around or nullcontext():
            for _ in range(2):  # an unused parameter is an error of the second
                self.model.zero_grad()
                loss = loss_of(run, x[dist.get_rank()][None])
                loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total)
        assert_same_output(total / WORLD, wanted_loss)
        got = gradients(self.model)
        whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in got.items()}
        assert_same_gradients(whole, wanted)
        decisions = [decision for graph in self.graphs for decision in graph]
        assert 1 <= len(decisions) <= 2, decisions  # blocks that are compiled alone share their graph
        assert all(isinstance(decision, Conversion) and decision.gate is not None for decision in decisions)


def data_parallel(sparsity: float = 0.5, around: AbstractContextManager | None = None) -> None:
    run = Run(sparsity)
    run.check(torch.compile(DistributedDataParallel(run.model), backend=run.backend), around)


def many_buckets() -> None:
    """Dynamo cuts graphs where DDP's buckets end, and none shows a grid; prepare keeps them whole."""
    run = Run()
    vsa_compile.prepare(run.model)
    before, dist._DEFAULT_FIRST_BUCKET_BYTES = dist._DEFAULT_FIRST_BUCKET_BYTES, 5000
    try:
        parallel = DistributedDataParallel(run.model, bucket_cap_mb=0.005)
        run.check(torch.compile(parallel, backend=run.backend))
    finally:
        dist._DEFAULT_FIRST_BUCKET_BYTES = before


def shard(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def sharded_blocks() -> None:
    run = Run()
    vsa_compile.prepare(run.model)
    shard(run.model)
    for block in run.model.blocks:
        block.compile(backend=run.backend)
    run.check(run.model)


def sharded_whole() -> None:
    """Dynamo stops at the hooks of the blocks, which therefore have to be told their grid."""
    run = Run()
    vsa_compile.prepare(run.model)
    shard(run.model)
    run.check(torch.compile(run.model, backend=run.backend))


CASES = {
    "ddp": data_parallel,
    "ddp at sparsity 0": lambda: data_parallel(0),
    "ddp in dense()": lambda: data_parallel(around=vsa_compile.dense()),
    "ddp with many buckets": many_buckets,
    "fsdp2 by blocks": sharded_blocks,
    "fsdp2 whole": sharded_whole,
}


def main(rank: int, store: str, results: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    found = {}
    for name, case in CASES.items():
        torch._dynamo.reset()
        try:
            case()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    results.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
