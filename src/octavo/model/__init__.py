"""One decoder definition, families as data, loading, and the replaceable path of matrix products."""

from __future__ import annotations

from octavo.model.config import ModelConfig, RopeConfig
from octavo.model.decoder import Decoder
from octavo.model.families import FAMILIES, read_model_config
from octavo.model.loader import load_model, weights_bytes

__all__ = ["FAMILIES", "Decoder", "ModelConfig", "RopeConfig", "load_model", "read_model_config", "weights_bytes"]
