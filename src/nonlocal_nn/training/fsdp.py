"""Parameters, gradients and optimizer state shared out over the processes: torch's fully_shard.

Each process keeps a part of every parameter, and a stage is put together as a clip reaches it. Checkpoints
hold whole tensors, so a run can go on with another number of processes, or with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def shard_stages(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the parameters of each stage with several, and then those that are left, in place."""
    for child in model.children():
        if isinstance(child, nn.Sequential) and any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors on the CPU; all processes call this, and all get it.

    >>> whole_state(nn.Linear(1, 2)).keys()
    dict_keys(['weight', 'bias'])
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = whole.detach().cpu()
    return state


@contextmanager
def put_together(model: nn.Module) -> Iterator[None]:
    """Whole parameters in every process meanwhile, so that each may run the model as often as it likes.

    In a forward pass of shared-out parameters all processes take part, and in a validation they have
    different numbers of videos.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are shared out.

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    return isinstance(model, FSDPModule)
