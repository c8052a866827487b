"""The decoder layers of a language model, cut into shards (torch's `fully_shard`), and put together where that pays.

A cut layer gathers its weights whenever it is computed, and frees them afterwards: forwards and, of what has gradients,
backwards, where each rank keeps its part of the mean over ranks. All ranks must compute it equally often. Decoding does
not, and would gather at every token: it gathers once (`gather`), for as long as nobody learns or changes a weight.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from partita.core.errors import UserError

HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # by which a layer gathers and frees


@dataclass
class _Cut:
    """The layers of a model. gathered: whether they are whole now; `hooks` are then those that they do without."""

    layers: list[Any]
    hooks: list[dict[str, Any]]
    gathered: bool = False

    def swap(self) -> None:
        """Exchange the hooks of the layers for the others."""
        for layer, held in zip(self.layers, self.hooks, strict=True):
            for name in HOOKS:
                mine = getattr(layer, name)
                setattr(layer, name, held[name])
                held[name] = mine


_CUT: WeakKeyDictionary[nn.Module, _Cut] = WeakKeyDictionary()


def decoder_layers(lm: Any) -> list[nn.Module]:
    """The layers in order. Raises UserError for a model that does not list them as modules of its own."""
    count = lm.config.get_text_config().num_hidden_layers
    for module in lm.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            seen = [id(p) for layer in module for p in layer.parameters()]
            if seen and len(set(seen)) == len(seen):
                return list(module)
    kind = getattr(lm.config, "model_type", type(lm).__name__)
    raise UserError(f"--shard: a model of type {kind} has no list of {count} layers with weights of their own; "
                    "leave --shard out")  # fmt: skip


def cut(lm: Any, device: torch.device) -> None:
    """Leave this rank its part of every layer's weights, on `device`; all else of the model stays as it is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from partita.core.ranks import world

    layers: list[Any] = decoder_layers(lm)
    mesh = init_device_mesh(device.type, (world(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        if device.type == "cpu":
            layer.set_force_sum_reduction_for_comms(True)  # gloo has no mean
    rest = {p for p in lm.base_model.parameters() if not hasattr(p, "to_local")}
    fully_shard(lm.base_model, mesh=mesh, ignored_params=rest)  # has no weights: it only sees what layer comes next
    _CUT[lm] = _Cut(layers, [{name: OrderedDict() for name in HOOKS} for _ in layers])


def gather(lm: nn.Module) -> None:
    """Make the layers whole, if they are cut, until `release`; every rank must ask for it."""
    held = _CUT.get(lm)
    if held is None or held.gathered:
        return
    with torch.inference_mode(False), torch.no_grad():
        for layer in held.layers:
            layer.unshard()
    held.swap()
    held.gathered = True


def release(lm: nn.Module) -> None:
    """Undo `gather`."""
    held = _CUT.get(lm)
    if held is None or not held.gathered:
        return
    held.swap()
    for layer in held.layers:
        layer.reshard()
    held.gathered = False
