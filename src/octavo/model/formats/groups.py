"""Which groups of inputs can be computed with."""

from __future__ import annotations

from octavo.model.config_file import ConfigFile

MULTIPLE = 32
"""What a group's inputs must be a multiple of: sums of products are made in so many at a time."""


def group_size(settings: ConfigFile, name: str, size: int | None, inputs: int, module: str) -> int:
    """Inputs of a group, where there is arithmetic for such groups.

    Args:
        settings: where the size is given.
        name: the field that gives it.
        size: inputs of a group; all that there are where it is None or less than 1.
        inputs: of the module.
        module: its name, for the message.

    Raises:
        UnsupportedModelError: they are refused.
    """
    if size is None or size < 1:
        return inputs
    if inputs % size:
        raise settings.refuse(name, f"does not divide the {inputs} inputs of {module}")
    if size % MULTIPLE and size != inputs:
        raise settings.refuse(name, f"is not supported: groups must be multiples of {MULTIPLE} inputs")
    return size
