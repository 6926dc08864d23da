"""Controllers: how much a step may do. One method a file."""

from __future__ import annotations

from paceline import registry
from paceline.controllers.base import Controller, Unlimited
from paceline.memory.sizes import is_size

__all__ = ["Controller", "Unlimited", "controller_of"]


def controller_of(memory: object) -> Controller:
    """The controller that `memory=` stands for.

    Args:
        memory: None (no limit), a cap such as `"512MiB"` or a number of bytes, a spec or an instance.

    Raises:
        BadRequest: it is none of these.
    """
    if memory is None:
        return Unlimited()
    if is_size(memory):
        return registry.construct(registry.find("controller", "specmemo"), {"cap": memory}, "memory")
    built: Controller = registry.build("controller", memory)
    return built
