"""Where in a checkpoint the parts of the decoder are."""

from __future__ import annotations

from typing import NamedTuple

from octavo.model.formats.weights import Weights

EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"


class Place(NamedTuple):
    """What the decoder's names begin with, and what the head is called then."""

    prefix: str
    head: str


PLACES = (
    Place("model.", _HEAD),
    Place("", _HEAD),  # saved from the bare model; transformers accepts it too
    Place("language_model.model.", f"language_model.{_HEAD}"),  # the text part of a model with eyes
    Place("model.language_model.", _HEAD),
)


def place_of(weights: Weights) -> Place:
    """The place where a checkpoint has its embedding; the usual one where it has none."""
    return next((place for place in PLACES if place.prefix + EMBEDDING in weights), PLACES[0])
