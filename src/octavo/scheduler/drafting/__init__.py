"""Guesses at the tokens to come, verified by the model in one step: who makes them, and how many are worth it."""

from octavo.scheduler.drafting.speculation import Speculation

__all__ = ["Speculation"]
