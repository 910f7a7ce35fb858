"""Where Octavo keeps what it can rebuild."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_dir() -> Path:
    """``$OCTAVO_CACHE_DIR``, else ``$XDG_CACHE_HOME/octavo``, else ``~/.cache/octavo``."""
    if explicit := os.environ.get("OCTAVO_CACHE_DIR"):
        return Path(explicit)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "octavo"
    return Path.home() / ".cache" / "octavo"
