"""A config.json being read: every value checked, every refusal naming file and field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError

_REQUIRED: Any = object()


class ConfigFile:
    """The object of a config.json, or one nested in it.

    A null counts as absent, as it does in transformers, except to :meth:`has`.

    Args:
        path: named in errors.
        values: the object.
        prefix: where the object stands in the file, for errors: ``"rope_scaling."``.
    """

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def has(self, name: str) -> bool:
        """Whether the file says anything of this field, null included."""
        return name in self.values

    def get(self, name: str) -> Any:
        """The raw value, None where absent."""
        return self.values.get(name)

    def integer(self, name: str, default: int = _REQUIRED, *, low: int = 1) -> int:
        """An integer of at least ``low``."""
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.refuse(name, f"must be an integer of at least {low}")
        return value

    def number(self, name: str, default: float = _REQUIRED, *, above: float = -math.inf) -> float:
        """A finite number above ``above``."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= above:
            raise self.refuse(name, f"must be a number{'' if above == -math.inf else f' above {above:g}'}")
        return float(value)

    def flag(self, name: str, default: bool = _REQUIRED) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.refuse(name, "must be a string")
        return value

    def nested(self, name: str) -> ConfigFile:
        """The object under ``name``, empty where absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, "must be an object")
        return ConfigFile(self.path, value or {}, f"{self.prefix}{name}.")

    def filled(self, defaults: dict[str, Any]) -> ConfigFile:
        """The same object with ``defaults`` for the fields that it does not have; a null stays a null."""
        return ConfigFile(self.path, {**defaults, **self.values}, self.prefix)

    def refuse(self, name: str, why: str) -> UnsupportedModelError:
        """The error that refuses this field's value."""
        return UnsupportedModelError(f"{self.path}: {self.prefix}{name}={self.values.get(name)!r} {why}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UnsupportedModelError(f"{self.path}: {self.prefix}{name} is missing")
        return default
