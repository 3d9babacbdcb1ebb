"""A flow over several processes: a full copy in each (DDP), or sharded by layer (FSDP2).

Process 0 saves full tensors: checkpoints are the same for any number of processes and both ways.
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

Parallel = Literal["ddp", "fsdp"]


def parallel(task: nn.Module, flow: Flow, processes: Processes, how: Parallel) -> nn.Module:
    """Return a module to call in place of `task`, whose gradients are means over processes.

    ``"ddp"`` wraps it, ``"fsdp"`` shards its flow in place.

    Raises:
        ConfigError: an objective with parameters under ``"fsdp"``, which shares the flow only.
    """
    if not processes.together:
        return task
    if how == "fsdp":
        if len(list(task.parameters())) > len(list(flow.parameters())):
            what = "an objective with parameters of its own is not sharded"
            raise ConfigError(what, "--train.parallel fsdp", "use ddp")
        shard(flow, processes)
        return task
    devices = [flow.device] if flow.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices)


def shard(flow: Flow, processes: Processes) -> None:
    """Give each process a part of each parameter; a layer gathers its parameters while it runs.

    Each layer with parameters is sharded, then the flow with the remaining ones. FSDP2 knows
    `forward` only, so each inverse is registered; all processes must sample together.
    """
    # these take a second to import
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # the warning concerns writes into a layer's output; nothing here writes there
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    mesh = init_device_mesh(flow.device.type, (processes.world,))
    for layer in dict.fromkeys(flow.layers()):  # a layer in two places is sharded once
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            register_fsdp_forward_method(layer, "inverse")
    fully_shard(flow, mesh=mesh, reshard_after_forward=True)
    for name in ("_inverse", "_latents", "logits"):  # `decode` and `draw` go through the first two
        register_fsdp_forward_method(flow, name)


def share_batch_norms(root: nn.Module, processes: Processes) -> int:
    """Let batch norms use all processes' rows; return how many are of a kind that cannot."""
    others = 0
    for module in root.modules():
        if isinstance(module, nn.BatchNorm1d) and hasattr(module, "processes"):
            module.processes = processes  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            others += not isinstance(module, nn.SyncBatchNorm)
    return others


def until_last(module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """Delay DDP's sum of gradients over processes to the last part of a batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, without a copy."""
    return tensor.to_local() if _sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def _sharded(value: object) -> bool:
    """Whether a value is a DTensor, told by an attribute: the class takes a second to import."""
    return hasattr(value, "full_tensor")


def unsharded(tree: Any) -> Any:  # noqa: ANN401
    """Return nested dicts, lists and tuples with full tensors; all processes call it together."""
    if isinstance(tree, dict):
        return {key: unsharded(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(unsharded(value) for value in tree)
    return tree.full_tensor() if _sharded(tree) else tree


def sharded_as(target: Tensor, value: Tensor) -> Tensor:
    """Return this process's part of process 0's full `value`, as `target` is sharded, if it is."""
    if not _sharded(target):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(value, target.device_mesh, target.placements).to_local()


@torch.no_grad()
def copy_from_main(target: Tensor, value: Tensor | None, processes: Processes) -> None:
    """Copy process 0's full `value` into every process's `target`, which may be sharded."""
    if value is None:
        value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    value = value.to(target)
    if _sharded(target):
        local(target).copy_(sharded_as(target, value))
    else:
        target.copy_(value)
        processes.align(iter([target]))


def load_flow(flow: Flow, tensors: dict[str, Tensor] | None, processes: Processes) -> None:
    """Load a state dict that process 0 has read."""
    for name, target in flow.state_dict().items():
        copy_from_main(target, None if tensors is None else tensors[name], processes)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any] | None, processes: Processes
) -> None:
    """Load an optimiser state that process 0 has read; parameters are numbered in order."""
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
                own = None if state is None else state["state"][i][name]
                copy_from_main(values[name], own, processes)
    optimizer.load_state_dict(loaded)


def _small(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, Tensor) and v.dim() else v for k, v in values.items()}
