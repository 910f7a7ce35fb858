"""GGUF files (llama.cpp's), seen as model folders in Hugging Face layout. Free of torch; the ``gguf`` package, an extra
(``octavo[gguf]``), reads the header."""

from octavo.gguf.folder import unpacked

__all__ = ["unpacked"]
