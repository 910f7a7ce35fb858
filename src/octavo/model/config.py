"""What a decoder is made of: the numbers of a Hugging Face config.json, checked and resolved once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from octavo.model.config_file import ConfigFile
from octavo.model.layer_groups import group_layers
from octavo.plan import LayerGroup

ACTIVATIONS = {"silu": "silu_and_mul", "swish": "silu_and_mul", "gelu_pytorch_tanh": "gelu_and_mul"}
"""hidden_act -> the kernel that computes ``act(gate) * up``."""

ROPE_KINDS = ("default", "linear", "llama3", "yarn", "dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al., RoFormer) and how its frequencies are stretched past the trained context.

    ``kind`` is "default"; "linear" (position interpolation: Chen et al. 2023); "llama3" (Llama 3.1's interpolation by
    wavelength); "yarn" (Peng et al. 2023); or "dynamic" (NTK-aware base that grows with the position).
    """

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 2048  #: the context the model was trained with
    attention_factor: float = 1.0  #: multiplies cos and sin (yarn)
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @classmethod
    def read(cls, file: ConfigFile, max_positions: int) -> RopeConfig:
        """From ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before).

        Raises:
            UnsupportedModelError: a kind of scaling that is unknown, or a field of it missing or malformed.
        """
        name = "rope_scaling" if file.get("rope_scaling") else "rope_parameters"
        scaling = file.nested(name)
        if any(isinstance(value, dict) for value in scaling.values.values()):
            raise file.refuse(name, "differs by layer type, which this family's layers do not")
        return cls.scaled(file, scaling, file.number("rope_theta", 10_000.0, above=0), max_positions)

    @classmethod
    def scaled(cls, file: ConfigFile, scaling: ConfigFile, theta: float, max_positions: int) -> RopeConfig:
        """From one object that describes a scaling.

        Args:
            file: the config.json.
            scaling: an object of it, empty for plain embedding.
            theta: where ``scaling`` says nothing of rope_theta.
            max_positions: the context that config.json speaks of.

        Raises:
            UnsupportedModelError: as :meth:`read`.
        """
        kind = scaling.text("rope_type", scaling.text("type", "default"))
        if kind not in ROPE_KINDS:
            raise scaling.refuse("rope_type", f"is not supported: {kind!r} is none of {', '.join(ROPE_KINDS)}")
        for place in (scaling, file):
            if place.number("partial_rotary_factor", 1.0) != 1.0:
                raise place.refuse("partial_rotary_factor", "is not supported: this family rotates whole heads")
        theta = scaling.number("rope_theta", theta, above=0)
        if kind == "default":
            return cls(theta=theta, original_positions=max_positions)
        if kind in ("linear", "dynamic"):
            factor = scaling.number("factor", above=0)
            return cls(kind=kind, theta=theta, factor=factor, original_positions=max_positions)
        original = scaling.integer("original_max_position_embeddings", max_positions)
        original = file.integer("original_max_position_embeddings", original)
        if kind == "llama3":
            low = scaling.number("low_freq_factor", above=0)
            high = scaling.number("high_freq_factor", above=0)
            if high == low:
                raise scaling.refuse("high_freq_factor", "must differ from low_freq_factor")
            return cls(
                kind=kind,
                theta=theta,
                factor=scaling.number("factor", above=0),
                original_positions=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        factor = scaling.number("factor", max_positions / original, above=0)
        return cls(
            kind=kind,
            theta=theta,
            factor=factor,
            original_positions=original,
            attention_factor=_yarn_attention_factor(scaling, factor),
            beta_fast=scaling.number("beta_fast", 0.0) or 32.0,
            beta_slow=scaling.number("beta_slow", 0.0) or 1.0,
            truncate=scaling.flag("truncate", True),
        )


def _yarn_attention_factor(scaling: ConfigFile, factor: float) -> float:
    """How much YaRN sharpens attention, unless the file says: from ``factor``, or DeepSeek's pair of mscales."""
    if scaling.get("attention_factor") is not None:
        return scaling.number("attention_factor", above=0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with pre-norms, rotary positions and a gated feed-forward part.

    What only some families have is off by default.

    Sizes are in elements, lengths in tokens. ``windows`` has one entry a layer: how many tokens of the past, itself
    included, a token sees; None sees all.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    activation: str = "silu_and_mul"  #: the kernel's name
    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None  #: of the windowed layers, where theirs is another
    windows: tuple[int | None, ...] = ()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False  #: attention and feed-forward part are normed before they join the residual, too
    norm_offset: float = 0.0  #: norms multiply by ``norm_offset + weight``
    embedding_scale: float = 1.0  #: of token embeddings; applied as the dtype computed in rounds it
    attention_scale: float | None = None  #: of attention scores [``head_dim ** -0.5``]
    attention_softcap: float = 0.0  #: attention scores become ``c tanh(score / c)``; 0 leaves them
    logit_softcap: float = 0.0  #: the same for logits
    dtype: str | None = None  #: of the checkpoint, as config.json says: "float32", "bfloat16", "float16"

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, or of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def flops_per_token(self) -> int:
        """FLOPs to put one token through all layers' products: two for each weight. Attention and head left out."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size)
        return 2 * self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def attention_flops(self) -> int:
        """FLOPs for one token to attend to one position in one layer: a score, and its share of the values."""
        return 4 * self.q_size

    @property
    def context_length(self) -> int:
        """The longest context the model is made for: what config.json says, or what its rope scaling stretches that
        to where the scaling is defined by the context it starts from (yarn, dynamic)."""
        if self.rope.kind in ("yarn", "dynamic"):
            return max(self.max_positions, int(self.rope.original_positions * self.rope.factor))
        return self.max_positions

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """How memory treats the layers: those of a group share a block table. All groups have equally many places."""
        return group_layers(self.windows, self.context_length)[0]

    @property
    def layer_places(self) -> tuple[tuple[int, int], ...]:
        """For each layer its group, and its place in the group's pages."""
        return group_layers(self.windows, self.context_length)[1]

    @classmethod
    def read(
        cls,
        file: ConfigFile,
        *,
        windows: tuple[int | None, ...] | None = None,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        mlp_bias: bool = False,
        qk_norm: bool = False,
        rope: RopeConfig | None = None,
        activation_field: str = "hidden_act",
    ) -> ModelConfig:
        """The fields every family shares, and the family's own.

        Args:
            file: the config.json.
            windows: one entry a layer [all full].
            num_kv_heads: where the file says nothing of num_key_value_heads [as many as query heads].
            head_dim: where the file says nothing of head_dim [hidden_size / num_attention_heads].
            qkv_bias: whether the query, key and value products have a bias.
            o_bias: whether the attention's output product has one.
            mlp_bias: whether the feed-forward products have one.
            qk_norm: whether each query and key head is normed before it is rotated.
            rope: where the family has a way of its own to write it down.
            activation_field: where the file names the activation.

        Raises:
            UnsupportedModelError: a field is missing, malformed or not supported.
        """
        heads = file.integer("num_attention_heads")
        hidden = file.integer("hidden_size")
        default_kv = heads if num_kv_heads is None or file.has("num_key_value_heads") else num_kv_heads
        kv_heads = file.integer("num_key_value_heads", default_kv)
        if heads % kv_heads:
            raise file.refuse("num_key_value_heads", f"does not divide num_attention_heads={heads}")
        if head_dim is None and file.get("head_dim") is None and hidden % heads:
            raise file.refuse(
                "hidden_size", f"is not a multiple of num_attention_heads={heads}, and head_dim is absent"
            )
        head_dim = file.integer("head_dim", head_dim or hidden // heads)
        if head_dim % 2 or head_dim < 4:
            raise file.refuse("head_dim", f"gives heads of {head_dim}: rotary embedding needs an even size from 4")
        activation = file.text(activation_field, "silu")
        if activation not in ACTIVATIONS:
            raise file.refuse(activation_field, f"is not supported: use one of {', '.join(ACTIVATIONS)}")
        layers = file.integer("num_hidden_layers")
        max_positions = file.integer("max_position_embeddings", 2048)
        return cls(
            architecture=file.get("architectures")[0],
            vocab_size=file.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=file.integer("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=file.number("rms_norm_eps", 1e-6, above=0),
            max_positions=max_positions,
            activation=ACTIVATIONS[activation],
            rope=RopeConfig.read(file, max_positions) if rope is None else rope,
            windows=(None,) * layers if windows is None else windows,
            tie_word_embeddings=file.flag("tie_word_embeddings", False),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=mlp_bias,
            qk_norm=qk_norm,
            dtype=stored_dtype(file),
        )


def stored_dtype(file: ConfigFile) -> str | None:
    """What the file says of the checkpoint's dtype.

    Raises:
        UnsupportedModelError: it is no dtype that weights may have.
    """
    name = "dtype" if file.get("dtype") is not None else "torch_dtype"
    value = file.get(name)
    if value is None:
        return None
    dtype = file.text(name).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise file.refuse(name, "is not supported: use a float32, bfloat16 or float16 checkpoint")
    return dtype
