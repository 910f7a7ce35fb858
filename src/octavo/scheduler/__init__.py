"""Who is resident, who computes, who is preempted and how. No torch, no clock, no I/O."""

from octavo.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
