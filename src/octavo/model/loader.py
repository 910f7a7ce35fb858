"""From a folder of files to a :class:`Decoder`."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import torch

from octavo.hub import Progress
from octavo.model.choices import LinearChoices
from octavo.model.choosing import KindChooser
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder, DecoderLayer
from octavo.model.dtypes import resolve_dtype
from octavo.model.embedding import Embedding, FullEmbedding, HasRows, LooksUp, QuantizedEmbedding, SharedEmbedding
from octavo.model.families import read_model_config
from octavo.model.formats import Weight, Weights, open_weights
from octavo.model.formats.choose import agreed_quantization
from octavo.model.formats.quantizing import QuantizingWeights, better_in_full, scheme_of
from octavo.model.formats.stacking import stacked
from octavo.model.heap import give_back
from octavo.model.linear import GatedLinear, Linear, LinearFactory
from octavo.model.places import EMBEDDING, place_of
from octavo.model.quantized import QuantizedWeight

_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias)")
"""Tensors that older exporters wrote and that are computed, not learned."""
_TRIM_BYTES = 2**27  # read before what was freed meanwhile is given back to the system


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    kernels: ModuleType,
    batch_invariant: bool = False,
    linear_kind: str = "auto",
    quantization: str | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Load a model in Hugging Face layout.

    Tensors are read, converted and fused one at a time, and packed as soon as they are whole: beside the finished
    weights at most one fused matrix is held.

    Args:
        folder: with config.json and safetensors (see :func:`octavo.hub.resolve_model`).
        dtype: "auto" or a name (see :func:`octavo.model.dtypes.resolve_dtype`).
        device: where the weights go.
        kernels: the backend, from :func:`octavo.kernels.load`.
        batch_invariant: a row's result has the same bits whatever the batch (see :mod:`octavo.model.linear`).
        linear_kind: how products with unquantised weights are done: "auto", "measure" or a kind (see
            :class:`octavo.model.choosing.KindChooser`).
        quantization: matrices are quantised while they are read: a key of
            :data:`octavo.model.formats.quantizing.SCHEMES` [they are taken as they are].
        progress: called with ("loading weights", bytes read, bytes in all).

    Raises:
        ModelNotFoundError: a file every model has is missing.
        UnsupportedModelError: config.json asks for what Octavo has not.
        UnsafeWeightsError: only pickled weights.
        WeightsError: damaged files, missing tensors, wrong shapes.
        ConfigError: the dtype cannot be computed here, there is no such kind of product, or ``quantization``
            contradicts the checkpoint.
        EngineError: ``batch_invariant`` cannot be honoured here.
    """
    config = read_model_config(folder)
    weights = open_weights(folder)
    quantization = agreed_quantization(folder, quantization)
    with torch.inference_mode(False), torch.no_grad():
        return _Loading(
            config, weights, dtype, torch.device(device), kernels, batch_invariant, linear_kind, quantization, progress
        ).decoder()


def weights_bytes(config: ModelConfig, dtype: torch.dtype, quantization: str | None = None) -> int:
    """What the weights may take in memory at most, in bytes. A tied embedding counts twice: rows are looked up in one
    copy, and the product with it may read a packed one. Quantised it is held once."""
    wider = torch.float32.itemsize - dtype.itemsize if config.norm_offset else 0
    if quantization is not None:
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        narrowest = min(config.hidden_size, config.q_size)
        bits = (_parameters(config) - tables) * scheme_of("layer", quantization).most_bits(narrowest)
        if dtype == torch.bfloat16 and better_in_full("o_proj", quantization):
            bits += config.num_layers * config.hidden_size * config.q_size * 8
        bits += tables * scheme_of(EMBEDDING.removesuffix(".weight"), quantization).most_bits(config.hidden_size)
        return int(bits / 8) + _norms(config) * (dtype.itemsize + wider)
    return (_parameters(config) + config.vocab_size * config.hidden_size) * dtype.itemsize + _norms(config) * wider


def _parameters(config: ModelConfig) -> int:
    """Weights to be read, with a head of its own only where embeddings are not tied."""
    hidden, qkv = config.hidden_size, config.q_size + 2 * config.kv_size
    layer = hidden * (qkv + config.q_size + 3 * config.intermediate_size)
    layer += qkv * config.qkv_bias + hidden * config.o_bias
    layer += (2 * config.intermediate_size + hidden) * config.mlp_bias
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_layers * layer + _norms(config) + tables * config.vocab_size * hidden


def _norms(config: ModelConfig) -> int:
    """Weights of norms."""
    layer = config.hidden_size * (4 if config.post_norms else 2) + 2 * config.head_dim * config.qk_norm
    return config.num_layers * layer + config.hidden_size


class _Loading:
    """One load under way."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        dtype: str,
        device: torch.device,
        kernels: ModuleType,
        batch_invariant: bool,
        linear_kind: str,
        quantization: str | None,
        progress: Progress | None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = device
        self.kernels = kernels
        self.progress = progress
        self.prefix, self.head = place_of(weights)
        self.dtype, self.notes = resolve_dtype(dtype, self._stored_dtype(), device)
        chooser = KindChooser(linear_kind, LinearChoices.here(kernels.__name__, self.dtype, torch.get_num_threads()))
        self.factory = LinearFactory(self.dtype, device, kernels, batch_invariant, chooser)
        if quantization is not None:
            self.weights = QuantizingWeights(weights, quantization, self.factory.full_is_quick)
        self.bytes_read = self.trimmed_at = 0
        self.bytes_kept = 0
        self.bytes_total = _parameters(config) * self.dtype.itemsize

    def decoder(self) -> Decoder:
        config = self.config
        embedding, head = self._ends()  # before the layers: what it takes to pack the largest matrix is free again
        layers = [self._layer(index) for index in range(config.num_layers)]
        final_norm = self._norm("norm.weight", config.hidden_size)
        self._note_unused()
        give_back()
        return Decoder(
            config,
            embedding,
            layers,
            final_norm,
            head,
            self.kernels,
            batch_invariant=self.factory.batch_invariant,
            notes=[*self.notes, *self.weights.notes, *self.factory.notes],
            weights_bytes=self.bytes_kept,
        )

    def _layer(self, index: int) -> DecoderLayer:
        config, attention, mlp = self.config, f"layers.{index}.self_attn", f"layers.{index}.mlp"
        hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
        qkv = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        group, place = config.layer_places[index]
        window = config.windows[index]
        after = "pre_feedforward" if config.post_norms else "post_attention"  # the norm before the feed-forward part
        return DecoderLayer(
            group=group,
            place=place,
            window=window,
            rope=int(config.local_rope is not None and window is not None),
            input_norm=self._norm(f"layers.{index}.input_layernorm.weight", hidden),
            qkv=self._linear(attention, qkv, hidden, config.qkv_bias),
            q_norm=self._norm(f"{attention}.q_norm.weight", head) if config.qk_norm else None,
            k_norm=self._norm(f"{attention}.k_norm.weight", head) if config.qk_norm else None,
            output=self._linear(attention, {"o_proj": hidden}, config.q_size, config.o_bias),
            post_attention_norm=self._post_norm(f"layers.{index}.post_attention_layernorm.weight"),
            mlp_norm=self._norm(f"layers.{index}.{after}_layernorm.weight", hidden),
            gate_up=self._gated(mlp, inner, hidden),
            down=self._linear(mlp, {"down_proj": hidden}, inner, config.mlp_bias),
            post_mlp_norm=self._post_norm(f"layers.{index}.post_feedforward_layernorm.weight"),
        )

    def _ends(self) -> tuple[Embedding, Linear]:
        """The embedding and the head.

        Embeddings that config.json calls tied may be stored under either name; stored under both with different
        values they are not tied, as transformers decides too.
        """
        embedding, head = self.prefix + EMBEDDING, self.head
        if not self.config.tie_word_embeddings:
            return self._embedding(self._table(embedding)), self._head(self._table(head))
        if head not in self.weights or embedding not in self.weights:
            return self._tied(self._table(embedding if embedding in self.weights else head))
        stored, other = self._table(embedding), self._table(head)
        if _alike(stored, other):
            return self._tied(stored)
        self.notes.append(
            f"config.json ties the embeddings, but the checkpoint has two different ones ({embedding}, {head}): both "
            "are used, untied"
        )
        return self._embedding(stored), self._head(other)

    def _tied(self, stored: Weight) -> tuple[Embedding, Linear]:
        if isinstance(stored, QuantizedWeight):
            product = self.factory.build_quantized(stored)
            if isinstance(product, LooksUp):
                self.bytes_kept += stored.nbytes
                return SharedEmbedding(product, self.dtype, self.device), product
            source = product if isinstance(product, HasRows) else stored
            self.bytes_kept += stored.nbytes * (2 if source is stored else 1)
            return QuantizedEmbedding(source, self.dtype, self.device), product
        table = self._full(stored)
        head = self.factory.build(table)
        if isinstance(head, LooksUp):
            self.bytes_kept += table.nbytes
            return SharedEmbedding(head, self.dtype, self.device), head
        self.bytes_kept += table.nbytes * (1 if head.kind.startswith("plain") else 2)
        return FullEmbedding(table), head

    def _embedding(self, stored: Weight) -> Embedding:
        """An embedding that is not the head."""
        whole = self._whole(stored)
        self.bytes_kept += whole.nbytes
        if isinstance(whole, QuantizedWeight):
            return QuantizedEmbedding(whole, self.dtype, self.device)
        return FullEmbedding(whole)

    def _head(self, stored: Weight) -> Linear:
        """A head that is not the embedding."""
        whole = self._whole(stored)
        self.bytes_kept += whole.nbytes
        return self.factory.build(whole)

    def _table(self, name: str) -> Weight:
        """The embedding or the head, as stored."""
        return self._matrix(name.removesuffix(".weight"), self.config.vocab_size, self.config.hidden_size)

    def _full(self, stored: torch.Tensor) -> torch.Tensor:
        """A matrix in the decoder's dtype, apart from the file."""
        return torch.empty(stored.shape, dtype=self.dtype, device=self.device).copy_(stored)

    def _whole(self, stored: Weight) -> Weight:
        """A matrix as the factory wants it, apart from the file."""
        return stacked([stored], self.dtype, self.device)

    def _linear(self, module: str, parts: dict[str, int], width: int, has_bias: bool) -> Linear:
        """The named products of a module as one, stacked in order."""
        weight, bias = self._stacked(module, parts, width, has_bias)
        if isinstance(self.weights, QuantizingWeights) and isinstance(weight, torch.Tensor):
            return self.factory.build_beside_quantized(weight, bias)
        return self.factory.build(weight, bias)

    def _gated(self, module: str, inner: int, width: int) -> GatedLinear:
        """Gate and up as one, with the activation that joins them."""
        weight, bias = self._stacked(module, {"gate_proj": inner, "up_proj": inner}, width, self.config.mlp_bias)
        return self.factory.build_gated(weight, bias, self.config.activation)

    def _stacked(
        self, module: str, parts: dict[str, int], width: int, has_bias: bool
    ) -> tuple[Weight, torch.Tensor | None]:
        matrices = [self._matrix(f"{self.prefix}{module}.{name}", rows, width) for name, rows in parts.items()]
        weight, bias = stacked(matrices, self.dtype, self.device), None
        self.bytes_kept += weight.nbytes
        if has_bias:
            biases = [self._tensor(f"{module}.{name}.bias", rows) for name, rows in parts.items()]
            bias = biases[0] if len(biases) == 1 else torch.cat(biases)
        return weight, bias

    def _matrix(self, module: str, rows: int, width: int) -> Weight:
        """A matrix as stored."""
        weight = self.weights.weight(module, (rows, width))
        self._count(rows * width * self.dtype.itemsize)
        return weight

    def _tensor(self, name: str, size: int) -> torch.Tensor:
        tensor = torch.empty(size, dtype=self.dtype, device=self.device)
        tensor.copy_(self.weights.read(self.prefix + name, (size,)))
        self._count(tensor.nbytes)
        self.bytes_kept += tensor.nbytes
        return tensor

    def _norm(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight; with the family's offset added, in float32, where it has one: in a narrower dtype the sum
        would be rounded, and transformers does not round it."""
        weight = self._tensor(name, size)
        if not self.config.norm_offset:
            return weight
        self.bytes_kept += 4 * size - weight.nbytes
        return weight.float() + self.config.norm_offset

    def _post_norm(self, name: str) -> torch.Tensor | None:
        return self._norm(name, self.config.hidden_size) if self.config.post_norms else None

    def _count(self, nbytes: int) -> None:
        """So much has been read."""
        self.bytes_read += nbytes
        if self.bytes_read - self.trimmed_at >= _TRIM_BYTES:
            self.trimmed_at = self.bytes_read
            give_back()
        if self.progress is not None:
            self.progress("loading weights", self.bytes_read, max(self.bytes_total, self.bytes_read))

    def _stored_dtype(self) -> torch.dtype:
        if self.config.dtype is not None:
            dtype: torch.dtype = getattr(torch, self.config.dtype)
            return dtype
        shape = (self.config.vocab_size, self.config.hidden_size)
        name = self.prefix + EMBEDDING if self.prefix + EMBEDDING in self.weights else self.head
        return self.weights.read(name, shape).dtype

    def _note_unused(self) -> None:
        unused = [name for name in self.weights.unread if _BUFFERS.fullmatch(name) is None]
        if unused:
            names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
            self.notes.append(f"the checkpoint has {len(unused)} tensors that this architecture does not use: {names}")


def _alike(stored: Weight, other: Weight) -> bool:
    """Whether two matrices are the same."""
    if isinstance(stored, QuantizedWeight) and isinstance(other, QuantizedWeight):
        return stored.bits == other.bits and all(
            (mine is None and theirs is None) or (mine is not None and theirs is not None and torch.equal(mine, theirs))
            for mine, theirs in zip(
                (stored.values, stored.scales, stored.mins), (other.values, other.scales, other.mins), strict=True
            )
        )
    if isinstance(stored, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(stored, other)
    return False
