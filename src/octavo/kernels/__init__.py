"""One set of signatures, several backends: ``reference`` (plain torch), ``cpu`` (Numba), and on a GPU Triton.

Every backend is a module with the functions below, same names and same meaning; parity tests hold each to a float64
reference. Activations are ``dtype`` (float32, bfloat16 or float16), arithmetic inside a kernel is float32. ``T`` is the
number of rows in the flat batch. ``kv`` is what :meth:`KvLayout.view` gives: a tensor, or where keys and values are
int8 a :class:`QuantizedKv`. Outputs are written to ``out``, which the caller preallocates and which is returned.

- ``rms_norm(x [T, H], weight [H], eps, out [T, H], offset=0.0)``: ``x / rms(x) * (offset + weight)``
- ``add_rms_norm(x [T, H], residual [T, H], weight, eps, out, offset=0.0)``: ``residual += x`` in place, then the norm
  of it. Rounding: residual is rounded to its dtype before it is normed, as eager PyTorch does.
- ``rotary_embedding(q [T, HQ, D], k [T, HK, D], positions [T] int64, cos_sin [P, R] float32)``: in place, "rotate half"
  over the first R dimensions; cos in the first R/2 columns, sin in the others. q and k may be strided views.
- ``silu_and_mul(gate_up [T, 2 I], out [T, I])``, ``gelu_and_mul`` (tanh form)
- ``write_kv(k [T, HK, D], v [T, HK, D], kv, layer, slots [T] int64)``
- ``paged_attention(q [T, HQ, D], kv, layer, meta, scale, out [T, HQ, D], window=None, softcap=0.0, sinks=None,
  batch_invariant=False)``: causal; ``window`` w: a token sees itself and the w - 1 before it; ``softcap`` c: scores
  become c tanh(score / c); ``sinks`` [HQ]: one more logit in each head's softmax denominator. Reads K and V straight
  from blocks. A row's result never depends on the other sequences of the batch (on ``triton`` the last bit may: they
  decide how a context is cut); with ``batch_invariant`` it does not, there either, nor on how many rows its own
  sequence brought (bit-equal whether prefilled, chunked or decoded). Where keys and values are int8, a token's own are
  read back quantised too: nothing depends on what came in one chunk. A ``context_len`` of 0 is a row that fills up a
  captured batch, on ``triton``: it brings one row, which becomes zeros.
- ``copy_blocks(cache [num_blocks, page_bytes] uint8, sources [N] int64, targets [N] int64)``: pairs are applied in
  order, each after the one before it is done
- ``fused_attention(qkv [T, (HQ + 2 HK) D], q_norm [D] | None, k_norm [D] | None, eps, cos_sin, kv, layer, meta, scale,
  out [T, HQ * D], num_heads, num_kv_heads, window=None, softcap=0.0, sinks=None, batch_invariant=False)``: q/k norm,
  rotary, KV write and paged attention: all that lies between two matrix products of an attention layer. What is in qkv
  afterwards is unspecified
- ``sample(logits [B, V] float32, temperature [B] float32, top_k [B] int32, top_p [B] float32, min_p [B] float32,
  seeds [B] uint64-as-int64, indexes [B] int64, positions [B] int64) -> tokens [B] int64``: the arg-max of
  logits / temperature + Gumbel noise over the tokens that top_k, top_p, min_p leave (in that order, on the distribution
  after temperature); the plain arg-max (first of equals) where temperature is 0. Noise: see ``kernels/noise.py``.
- ``greedy(logits [B, V] float32) -> tokens [B] int64``: the arg-max, of equals the first; -1 where a row holds a NaN or
  an infinity
- ``log_softmax_gather(logits [B, V] float32, tokens [B] int64) -> [B] float32``: their log-probabilities
- ``top_logprobs(logits [B, V] float32, k) -> (ids [B, k] int64, logprobs [B, k] float32)``: likeliest first, of equals
  the lower id
- ``draw(logits [R, V], sources [D] int64 | None, slots [D] int64, indexes [D] int64, positions [D] int64, temperature
  [S], top_k [S], top_p [S], min_p [S], seeds [S], masked=False, out=None) -> Drawn``: ``sample`` for a device, where
  parameters stand in columns of S slots, logits are of any float dtype, and tokens, their log-probabilities and what
  failed stay on the device; ``edit_logits(logits [R, V], rows [R] int64, bias [E, V] float32 | None, tally [E, V] int32
  | None, penalties [E, 3] float32, out [R, V] float32)``: biases, masks and penalties from a device's state. The
  backends ``reference`` and ``triton`` have both
- ``set_num_threads(n)``: threads of this backend and of torch, both; ``warm_up(progress=None)``: compile whatever the
  backend compiles, now; ``progress(name, i, total)`` is called before each kernel that is not in the disk cache
- ``PanelLinear(weight, bias=None, activation=None)``, where a backend has matrix products of its own: see
  ``kernels/cpu/linear.py``. ``PanelLinear.available()`` says whether this machine is good at them
- ``QUANTIZED_LINEARS``: kinds of products with a :class:`~octavo.kernels.quantized.QuantizedWeight`, the best first:
  of those that are ``available()`` the first that ``serves(weight)`` is taken, and the last serves all
- ``penalize(logits [B, V] float32, ...)`` lives with the sampler in ``executor/``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from octavo.kernels.layout import KvLayout
from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized_kv import Kv, QuantizedKv

BACKENDS = {"reference": "octavo.kernels.reference", "cpu": "octavo.kernels.cpu", "triton": "octavo.kernels.triton"}

__all__ = ["BACKENDS", "AttentionMetadata", "Kv", "KvLayout", "QuantizedKv", "load"]


def load(name: str) -> ModuleType:
    """The backend's module, imported when first asked for."""
    return importlib.import_module(BACKENDS[name])
