"""The one decoder: every family runs through it, on flat batches, reading and writing paged KV memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from octavo.kernels import AttentionMetadata, Kv
from octavo.model.config import ModelConfig
from octavo.model.embedding import Embedding
from octavo.model.linear import GatedLinear, Linear
from octavo.model.rope import cos_sin_table

_RECORDED_ROWS = 128
"""Batches of at most so many rows run from recorded programs: with more, launches cost little beside what they do."""


@dataclass(slots=True)
class DecoderLayer:
    """One layer's weights, and where its keys and values lie. Query, key and value are one product, gate and up
    another."""

    group: int  #: whose block table it reads
    place: int  #: within the group's pages
    window: int | None
    rope: int  #: which table of angles: 0 the model's, 1 that of its windowed layers
    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    post_attention_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: GatedLinear
    down: Linear
    post_mlp_norm: torch.Tensor | None


@dataclass(slots=True)
class _Step:
    """A recorded step, and what it was recorded for."""

    kv: Kv
    with_head: bool  # it ends with logits, in the decoder's memory for them
    program: Any


@dataclass(slots=True)
class _Buffers:
    """Activations of one batch size: views of the decoder's storage."""

    tokens: torch.Tensor  # int64 [T]
    residual: torch.Tensor  # [T, hidden]
    normed: torch.Tensor  # [T, hidden]
    attended: torch.Tensor  # [T, heads * head_dim]
    activated: torch.Tensor  # [T, intermediate]
    qkv: torch.Tensor  # [T, (heads + 2 kv_heads) * head_dim]
    mixed: torch.Tensor  # [T, hidden]
    programs: list[Any] | None = None  # recorded: what comes before the first attention, then what follows each
    step: _Step | None = None  # recorded: all of a batch that is decoded


class Decoder:
    """A loaded model.

    Args:
        config: its shape.
        embedding: token to ``[hidden]``, of the dtype the decoder computes in.
        layers: bottom first.
        final_norm: ``[hidden]``.
        head: hidden -> vocab.
        kernels: the backend (see :mod:`octavo.kernels`).
        batch_invariant: asked of attention too: a row's result must not depend on the rows beside it.
        notes: what was chosen while loading, a line each, for a person.
        weights_bytes: what the weights take in memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        layers: list[DecoderLayer],
        final_norm: torch.Tensor,
        head: Linear,
        kernels: ModuleType,
        *,
        batch_invariant: bool = False,
        notes: Sequence[str] = (),
        weights_bytes: int = 0,
    ) -> None:
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.batch_invariant = batch_invariant
        self.notes = list(notes)
        self.weights_bytes = weights_bytes
        self._embedding = embedding
        self._layers = layers
        # The norm after layer i's feed-forward part is the one before layer i + 1's attention, and at last the final.
        self._next_norms = [layer.input_norm for layer in layers[1:]] + [final_norm]
        self._head = head
        self._kernels = kernels
        # Where a launch costs more than what it does, products write to where they are wanted; a CPU's are sooner done
        # in fresh memory, which the cache still holds.
        self._in_place = self.device.type != "cpu"
        self._recordable = all(
            getattr(linear, "recordable", False)
            for layer in layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        )
        self._decodes = self._recordable and kernels.decodes(1, config.head_dim, batch_invariant)
        self._head_recordable = getattr(head, "recordable", False) and getattr(head, "widens", False)
        self._scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=self.dtype))
        self._embeds = self._embedding_scale == 1.0 and getattr(embedding, "recordable", False)
        self._capacity = 0
        self._storage: _Buffers
        self._views: dict[int, _Buffers] = {}
        self._logits = torch.empty(0, config.vocab_size, device=self.device)
        self._ropes = (config.rope,) if config.local_rope is None else (config.rope, config.local_rope)
        self._cos_sin = tuple(torch.empty(0, config.head_dim, device=self.device) for _ in self._ropes)
        self.reserve(1, 1024)

    def reserve(self, num_tokens: int, num_positions: int) -> None:
        """Make room for batches of ``num_tokens`` rows and for contexts of ``num_positions`` tokens; both grow by
        themselves, so this only moves the cost to a convenient time."""
        held = self._cos_sin[0].shape[0]
        if num_positions > held:
            length = max(num_positions, min(2 * held, self.config.context_length))
            with torch.inference_mode(False):
                tables = (cos_sin_table(rope, self.config.head_dim, length) for rope in self._ropes)
                self._cos_sin = tuple(table.to(self.device).contiguous() for table in tables)
            self._views.clear()  # programs name the tables they were recorded with
        if num_tokens > self._capacity:
            self._capacity = max(num_tokens, 2 * self._capacity)
            self._views.clear()
            config = self.config
            self._storage = _Buffers(
                tokens=torch.zeros(self._capacity, dtype=torch.int64, device=self.device),
                residual=self._empty(self._capacity, config.hidden_size),
                normed=self._empty(self._capacity, config.hidden_size),
                attended=self._empty(self._capacity, config.q_size),
                activated=self._empty(self._capacity, config.intermediate_size),
                qkv=self._empty(self._capacity, config.q_size + 2 * config.kv_size),
                mixed=self._empty(self._capacity, config.hidden_size),
            )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,
        kv: Kv,
        meta: Sequence[AttentionMetadata],
        rows: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute a flat batch: write its keys and values to memory, and give the logits of the rows wanted.

        Args:
            token_ids: int64 ``[T]``; a row's position is ``meta[0].positions``'.
            kv: :meth:`KvLayout.view`'s, written to.
            meta: which row belongs to whom: one for each of ``config.layer_groups``, alike but for the tables.
            rows: int64 ``[R]``, the rows whose logits are wanted [all T]. From the last layer's attention on, only
                they are computed.
            out: ``[R, vocab]``, where the logits are to go, float32 or the decoder's dtype (which holds them exactly,
                unless they are capped) [memory of the decoder's own].

        Returns:
            ``out``, or float32 ``[R, vocab]``, good until the next call. The caller may write to it, in inference mode.
        """
        count = token_ids.shape[0]
        if rows is None and out is None and self._head_recordable and self._has_step(count, meta):
            logits = self._room_for_logits(count)
            self._run_step(token_ids, kv, meta, logits)
            return self._capped(logits)
        return self.logits(self.hidden(token_ids, kv, meta, rows), out)

    __call__ = forward

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The head alone: rows of :meth:`hidden` to float32 ``[R, vocab]``, in ``out`` or good until the next call."""
        if not hidden.shape[0]:
            return self._logits[:0]
        return self._capped(self._head_to_float(hidden, out))

    @torch.inference_mode()
    def multiply(self, num_tokens: int) -> None:
        """The layers' matrix products for a batch of ``num_tokens`` rows and nothing else, on whatever the buffers
        hold: so many times ``config.flops_per_token``, to be timed."""
        self.reserve(num_tokens, 1)
        buffers = self._buffers_of(self._storage, num_tokens)
        for layer in self._layers:
            layer.qkv(buffers.normed, buffers.qkv)
            layer.output(buffers.attended, buffers.mixed)
            layer.gate_up(buffers.normed, buffers.activated)
            layer.down(buffers.activated, buffers.mixed)

    @property
    def bytes_per_step(self) -> int:
        """Weights that a step reads, however few its rows: all but the table of embeddings, where that is a copy of
        its own beside the head."""
        return self.weights_bytes - self._embedding.bytes_beside(self._head)

    @torch.inference_mode()
    def hidden(
        self,
        token_ids: torch.Tensor,
        kv: Kv,
        meta: Sequence[AttentionMetadata],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """:meth:`forward` without the head, for a caller who wants more rows than there is room for their logits.

        Returns:
            ``[R, hidden]`` after the final norm, in the decoder's dtype, good until the next call.
        """
        count, last = token_ids.shape[0], len(self._layers) - 1
        if self._has_step(count, meta):
            normed = self._run_step(token_ids, kv, meta).normed
            return normed if rows is None else normed.index_select(0, rows)
        self.reserve(count, meta[0].max_context)
        buffers = self._buffers(count)
        residual, normed, attended, qkv = buffers.residual, buffers.normed, buffers.attended, buffers.qkv
        in_place = self._in_place
        programs = self._programs(buffers) if self._recordable and count <= _RECORDED_ROWS else None
        self._embed(token_ids, residual)
        if programs:
            programs[0].run()
        else:
            self._kernels.rms_norm(residual, self._layers[0].input_norm, self.config.norm_eps, normed)
        for index, layer in enumerate(self._layers):
            if not programs:
                qkv = layer.qkv(normed, buffers.qkv if in_place else None)
            self._attend(layer, qkv, kv, meta, attended)
            if programs:
                programs[index + 1].run()
            elif index == last and rows is not None:
                if rows.shape[0] == 0:
                    return normed[:0]
                wanted = self._buffers_of(self._storage, rows.shape[0])
                wanted.attended, wanted.residual = attended.index_select(0, rows), residual.index_select(0, rows)
                self._feed(index, wanted, wanted.mixed if in_place else None)
                return wanted.normed
            else:
                self._feed(index, buffers, buffers.mixed if in_place else None)
        return normed if rows is None else normed.index_select(0, rows)

    def _attend(
        self, layer: DecoderLayer, qkv: torch.Tensor, kv: Kv, meta: Sequence[AttentionMetadata], out: torch.Tensor
    ) -> None:
        config = self.config
        self._kernels.fused_attention(
            qkv,
            layer.q_norm,
            layer.k_norm,
            config.norm_eps,
            self._cos_sin[layer.rope],
            kv,
            layer.place,
            meta[layer.group],
            self._scale,
            out,
            config.num_heads,
            config.num_kv_heads,
            layer.window,
            config.attention_softcap,
            batch_invariant=self.batch_invariant,
        )

    def _feed(self, index: int, buffers: _Buffers, out: torch.Tensor | None = None) -> None:
        """What follows a layer's attention, up to the next norm."""
        layer, eps, kernels = self._layers[index], self.config.norm_eps, self._kernels
        mixed = layer.output(buffers.attended, out)
        if layer.post_attention_norm is not None:
            kernels.rms_norm(mixed, layer.post_attention_norm, eps, mixed)
        kernels.add_rms_norm(mixed, buffers.residual, layer.mlp_norm, eps, buffers.normed)
        layer.gate_up(buffers.normed, buffers.activated)
        fed = layer.down(buffers.activated, out)
        if layer.post_mlp_norm is not None:
            kernels.rms_norm(fed, layer.post_mlp_norm, eps, fed)
        kernels.add_rms_norm(fed, buffers.residual, self._next_norms[index], eps, buffers.normed)

    def _programs(self, buffers: _Buffers) -> list[Any]:
        """What lies between attentions, to be done by one launch each: before the first one, then after each."""
        if buffers.programs is not None:
            return buffers.programs
        kernels, first = self._kernels, self._layers[0]
        programs = buffers.programs = []
        with kernels.recording() as program:
            kernels.rms_norm(buffers.residual, first.input_norm, self.config.norm_eps, buffers.normed)
            first.qkv(buffers.normed, buffers.qkv)
        programs.append(program)
        for index in range(len(self._layers)):
            with kernels.recording() as program:
                self._feed(index, buffers, buffers.mixed)
                if index + 1 < len(self._layers):
                    self._layers[index + 1].qkv(buffers.normed, buffers.qkv)
            programs.append(program)
        return programs

    def _embed(self, token_ids: torch.Tensor, residual: torch.Tensor) -> None:
        self._embedding(token_ids, residual)
        if self._embedding_scale != 1.0:
            residual.mul_(self._embedding_scale)

    def _has_step(self, count: int, meta: Sequence[AttentionMetadata]) -> bool:
        """Whether a batch of ``count`` rows is one recorded program: every sequence brings one of them."""
        return self._recordable and self._decodes and meta[0].max_query == 1 and 0 < count <= _RECORDED_ROWS

    def _run_step(
        self, token_ids: torch.Tensor, kv: Kv, meta: Sequence[AttentionMetadata], logits: torch.Tensor | None = None
    ) -> _Buffers:
        """A batch that has a step, from tokens to the last norm, or to ``logits``."""
        count, with_head = token_ids.shape[0], logits is not None
        self.reserve(count, meta[0].max_context)
        buffers = self._buffers(count)
        step = buffers.step
        if step is None or step.kv is not kv or step.with_head != with_head:
            step = buffers.step = _Step(kv, with_head, self._record_step(buffers, kv, meta, logits))
        if self._embeds:
            buffers.tokens.copy_(token_ids)
        else:
            self._embed(token_ids, buffers.residual)
        step.program.run(meta)
        return buffers

    def _record_step(
        self, buffers: _Buffers, kv: Kv, meta: Sequence[AttentionMetadata], logits: torch.Tensor | None
    ) -> Any:
        kernels, first = self._kernels, self._layers[0]
        with kernels.recording(meta) as program:
            if self._embeds:
                self._embedding(buffers.tokens, buffers.residual)
            kernels.rms_norm(buffers.residual, first.input_norm, self.config.norm_eps, buffers.normed)
            for index, layer in enumerate(self._layers):
                layer.qkv(buffers.normed, buffers.qkv)
                self._attend(layer, buffers.qkv, kv, meta, buffers.attended)
                self._feed(index, buffers, buffers.mixed)
            if logits is not None:
                self._head(buffers.normed, logits)
        return program

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        cap = self.config.logit_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    def _head_to_float(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if getattr(self._head, "widens", False):
            return self._head(hidden, self._room_for_logits(hidden.shape[0]) if out is None else out)
        if out is not None and out.dtype == hidden.dtype:
            return self._head(hidden, out)
        logits = self._head(hidden)
        if logits.dtype == torch.float32:
            return logits
        return (self._room_for_logits(hidden.shape[0]) if out is None else out).copy_(logits)

    def _room_for_logits(self, rows: int) -> torch.Tensor:
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.config.vocab_size, dtype=torch.float32, device=self.device)
            for views in self._views.values():
                views.step = None  # it names what was there before
        return self._logits[:rows]

    def _buffers(self, num_tokens: int) -> _Buffers:
        views = self._views.get(num_tokens)
        if views is None:
            if len(self._views) >= 64:
                self._views.clear()
            views = self._views[num_tokens] = self._buffers_of(self._storage, num_tokens)
        return views

    @staticmethod
    def _buffers_of(storage: _Buffers, num_tokens: int) -> _Buffers:
        return _Buffers(
            tokens=storage.tokens[:num_tokens],
            residual=storage.residual[:num_tokens],
            normed=storage.normed[:num_tokens],
            attended=storage.attended[:num_tokens],
            activated=storage.activated[:num_tokens],
            qkv=storage.qkv[:num_tokens],
            mixed=storage.mixed[:num_tokens],
        )

    def _empty(self, rows: int, width: int) -> torch.Tensor:
        with torch.inference_mode(False):
            return torch.empty(rows, width, dtype=self.dtype, device=self.device)
