"""A flow over several processes: whole in each (DDP), or sharded layer by layer (FSDP2).

Whatever is saved is whole and in process 0, so that checkpoints are the same for any number of
processes and either way of sharing.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixerflow.core import Flow
from mixerflow.errors import ConfigError
from mixerflow.processes import Processes
from mixerflow.training.objective import Task

Parallel = Literal["ddp", "fsdp"]


def parallel(task: Task, processes: Processes, how: Parallel) -> nn.Module:
    """What to call in place of `task` so that gradients are means over processes.

    ``"ddp"`` wraps it, ``"fsdp"`` shards its flow in place (`shard`).

    Raises:
        ConfigError: an objective with parameters under ``"fsdp"``, which shares the flow only.
    """
    if not processes.together:
        return task
    if how == "fsdp":
        if task.own is not None and next(task.own.parameters(), None) is not None:
            what = "an objective with parameters of its own is not sharded"
            raise ConfigError(what, "--train.parallel fsdp", "use ddp")
        shard(task.flow, processes)
        return task
    devices = [task.flow.device] if task.flow.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices)


def shard(flow: Flow, processes: Processes) -> None:
    """Give each process a part of each parameter, gathered while its layer is at work.

    Children first: every layer of the flow that has parameters, then the flow with what is left.
    Sharding knows of `forward` only, so each inverse is registered: sampling then works, if all
    processes do it together.
    """
    # these take a second to import
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # said of every layer that ends in a view; nothing here writes into a layer's output
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    mesh = init_device_mesh(flow.device.type, (processes.world,))
    for layer in dict.fromkeys(flow.layers()):  # one that stands in two places is sharded once
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            register_fsdp_forward_method(layer, "inverse")
    fully_shard(flow, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(flow, "_inverse")  # `decode` and `draw` go through it


def share_batch_norms(root: nn.Module, processes: Processes) -> int:
    """Let batch norms see all processes' rows; returns how many are of a kind that cannot."""
    others = 0
    for module in root.modules():
        if isinstance(module, nn.BatchNorm1d) and hasattr(module, "processes"):
            module.processes = processes  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            others += not isinstance(module, nn.SyncBatchNorm)
    return others


def until_last(module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """Of a batch in parts: DDP adds up gradients over processes once, with the last part."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, without a copy."""
    return tensor.to_local() if _sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def _sharded(value: object) -> bool:
    """Whether it is a DTensor; not by the class, which takes a second to import."""
    return hasattr(value, "full_tensor")


def whole(tree: Any) -> Any:  # noqa: ANN401
    """Nested dicts, lists and tuples with every sharded tensor whole; all processes together."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(whole(value) for value in tree)
    return tree.full_tensor() if _sharded(tree) else tree


@torch.no_grad()
def put(target: Tensor, value: Tensor | None, processes: Processes) -> None:
    """Write process 0's `value`, whole, into `target`, whole or sharded, of every process."""
    if value is None:
        value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    value = value.to(target)
    if _sharded(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        given = distribute_tensor(value, target.device_mesh, target.placements)
        target.to_local().copy_(given.to_local())
    else:
        target.copy_(value)
        processes.align(iter([target]))


def load_flow(flow: Flow, tensors: dict[str, Tensor] | None, processes: Processes) -> None:
    """`Flow.load_state_dict` of what process 0 has read."""
    for name, target in flow.state_dict().items():
        put(target, None if tensors is None else tensors[name], processes)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any] | None, processes: Processes
) -> None:
    """`Optimizer.load_state_dict` of what process 0 has read; parameters are numbered in order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    small = None
    if state is not None:  # all but the tensors of a parameter's shape
        kept = {i: _small(values) for i, values in state["state"].items()}
        small = {"state": kept, "param_groups": state["param_groups"]}
    loaded: dict[str, Any] = processes.from_main(small) or {}
    for i, values in loaded["state"].items():
        for name, value in values.items():
            if value is None:
                values[name] = torch.zeros_like(parameters[i])
                put(values[name], None if state is None else state["state"][i][name], processes)
    optimizer.load_state_dict(loaded)


def _small(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, Tensor) and v.dim() else v for k, v in values.items()}
