"""One stream of requests through Octavo's scheduler and through vLLM's, and what either did with it.

``stream``, ``slots`` and ``trail`` are plain Python: both sides import them, each in a Python of its own.
"""
