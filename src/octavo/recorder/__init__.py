"""The run log: what an engine decided, step by step, written down as it happens."""

from octavo.recorder.run_log import RunLog, read_log

__all__ = ["RunLog", "read_log"]
