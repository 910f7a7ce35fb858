"""Which groups of inputs can be computed with."""

from __future__ import annotations

from octavo.model.config_file import ConfigFile

MULTIPLE = 32
"""What a group's inputs must be a multiple of: sums of products are made in so many at a time."""


def check_group_size(settings: ConfigFile, name: str, size: int, inputs: int, module: str) -> None:
    """Refuse groups that there is no arithmetic for.

    Args:
        settings: where the size is given.
        name: the field that gives it.
        size: inputs of a group.
        inputs: of the module.
        module: its name, for the message.

    Raises:
        UnsupportedModelError: they are refused.
    """
    if inputs % size:
        raise settings.refuse(name, f"does not divide the {inputs} inputs of {module}")
    if size % MULTIPLE and size != inputs:
        raise settings.refuse(name, f"is not supported: groups must be multiples of {MULTIPLE} inputs")
