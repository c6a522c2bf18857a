"""The least that a training step's networks take: their passes over whole patches, bare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True)
class Pass:
    """One outermost call of a network, or of a part of one."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    with_gradient: bool

    def __str__(self) -> str:
        shape = " x ".join(map(str, next(tensors_in(self.inputs)).shape))
        return f"{self.name} of {shape}{' forward and backward' if self.with_gradient else ''}"


class Floor:
    """Calling it makes the passes of one of the trainer's steps, and the EMA at memory speed.

    Args:
        trainer: makes one step, whose passes are remembered.
        compiled: run the modules through torch.compile.

    Attributes:
        passes: what is made, in words.
    """

    def __init__(self, trainer: Any, compiled: bool) -> None:
        made = passes_of_a_step(trainer)
        self.passes = [str(one) for one in made]
        self._autocast = torch.autocast("cuda", enabled=trainer.device.type == "cuda")
        self._modules = [torch.compile(one.module) if compiled else one.module for one in made]
        self._made = made
        averaged = [m for m in vars(trainer).values() if isinstance(m, AveragedModel)]
        weights = sum(p.numel() for model in averaged for p in model.parameters())
        self._average, self._weights = torch.zeros(2, weights, device=trainer.device)

    def __call__(self) -> None:
        for one, module in zip(self._made, self._modules, strict=True):
            with torch.set_grad_enabled(one.with_gradient), self._autocast:
                output = module(*one.inputs)
            if one.with_gradient:
                outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
                torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
                one.module.zero_grad(set_to_none=True)
        self._average.lerp_(self._weights, 0.001)


def networks_of(trainer: Any) -> dict[str, nn.Module]:
    """U-Nets among the trainer's attributes, each once, by the attribute's name."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for attribute, value in vars(trainer).items():
        for module in value.modules() if isinstance(value, nn.Module) else ():
            if hasattr(module, "encoder") and hasattr(module, "decoder"):
                found.setdefault(id(module), (attribute, module))
    return dict(found.values())


def passes_of_a_step(trainer: Any) -> list[Pass]:
    """Let the trainer make one step, and remember what its networks are called with.

    Not passes over images that are no whole patch, as the crops of an embedder.
    """
    names = {
        id(module): f"{attribute}.{path}".removesuffix(".")
        for attribute, network in networks_of(trainer).items()
        for path, module in network.named_modules()
    }
    patch = tuple(trainer.configuration_manager.patch_size)
    made: list[Pass] = []
    depth = 0

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal depth
        if id(module) in names:
            depth += 1
            shape = next(tensors_in(inputs)).shape
            is_crop = shape[1] == trainer.num_input_channels and shape[2:] != patch
            if depth == 1 and not is_crop:
                copies = tuple(_copy(value) for value in inputs)
                made.append(Pass(names[id(module)], module, copies, torch.is_grad_enabled()))

    def after(module: nn.Module, *_: Any) -> None:
        nonlocal depth
        depth -= id(module) in names

    hooks = nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(before),
        hooks.register_module_forward_hook(after, always_call=True),
    ]
    trainer.train_step(next(trainer.batches))
    for handle in handles:
        handle.remove()
    return made


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors of nested lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return type(value)(map(_copy, value)) if isinstance(value, (list, tuple)) else value
