"""Models: one paper, one file, one frozen dataclass with ``build(shape) -> Flow``."""

from __future__ import annotations

from typing import Any

import torch

from mixerflow.core import Flow, Shape
from mixerflow.errors import CheckpointError
from mixerflow.models.anf import ANF
from mixerflow.models.attention_glow import AttentionGlow
from mixerflow.models.butterfly import ButterflyFlow
from mixerflow.models.denseflow import DenseFlow
from mixerflow.models.emerging import Emerging
from mixerflow.models.featureflow import FeatureFlow
from mixerflow.models.ffjord import FFJORD
from mixerflow.models.flowpp import FlowPP
from mixerflow.models.gaussianization import GaussianizationFlow
from mixerflow.models.glow import Glow
from mixerflow.models.idensenet import IDenseNet
from mixerflow.models.iresnet import IResNet
from mixerflow.models.macow import MaCow
from mixerflow.models.maf import MAF
from mixerflow.models.mixerflow import MixerFlow
from mixerflow.models.mixerflow_dense import MixerDenseFlow
from mixerflow.models.monotone_flow import MonotoneFlow
from mixerflow.models.nsf import NSF
from mixerflow.models.periodic import Periodic
from mixerflow.models.realnvp import RealNVP
from mixerflow.models.residual_flow import ResidualFlow
from mixerflow.models.survae import SurVAE
from mixerflow.models.vflow import VFlow
from mixerflow.models.woodbury import WoodburyGlow
from mixerflow.parts.model import Model, spec_of
from mixerflow.registry import construct, describe

__all__ = ["FFJORD", "MAF", "NSF", "ButterflyFlow", "DenseFlow", "Emerging", "FeatureFlow", "Glow"]
__all__ += ["MaCow", "MixerDenseFlow", "MixerFlow", "Model", "Periodic", "RealNVP", "WoodburyGlow"]
__all__ += ["IDenseNet", "IResNet", "MonotoneFlow", "ResidualFlow"]
__all__ += ["ANF", "AttentionGlow", "FlowPP", "GaussianizationFlow", "SurVAE", "VFlow"]
__all__ += ["flow_from", "from_spec", "spec_of", "spec_of_flow"]


def spec_of_flow(flow: Flow) -> dict[str, Any]:
    """Return the description from which `flow_from` rebuilds a flow: its model, or its modules."""
    return flow.spec if flow.spec is not None else describe(flow)


def flow_from(spec: dict[str, Any], where: object = "run.json") -> Flow:
    """Return an untrained flow from the description of `spec_of_flow`.

    The states of torch's generators do not change.

    Raises:
        CheckpointError: a description by a version with other models or settings, or with a class
            that this program has not registered.
    """
    with torch.random.fork_rng([]):  # weights are loaded later
        if spec.get("type") != "Flow":
            model, shape = from_spec(spec, where)
            return model.build(shape)
        flow = construct(spec, where)
    assert isinstance(flow, Flow)
    return flow


def from_spec(spec: dict[str, Any], where: object = "run.json") -> tuple[Model, Shape]:
    """Return a model and its images' shape from the description of `spec_of`.

    The description of a flow that was made by hand is a CheckpointError, see also `flow_from`.
    """
    if spec.get("type") == "Flow":
        what, remedy = "a flow made by hand", "use mixerflow.load, and mixerflow.train in a program"
        raise CheckpointError(what, where, remedy)
    shape = tuple(spec.get("shape", ()))
    model = construct({key: value for key, value in spec.items() if key != "shape"}, where)
    if not isinstance(model, Model):
        what = f"no model but a {type(model).__name__}"
        raise CheckpointError(what, where, "restore the file from a copy")
    return model, shape
