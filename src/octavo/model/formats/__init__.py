"""The ways in which checkpoints hold weights, quantised by whomever, behind one interface: see :class:`Weights`."""

from octavo.model.formats.choose import open_weights
from octavo.model.formats.weights import Weight, Weights

__all__ = ["Weight", "Weights", "open_weights"]
