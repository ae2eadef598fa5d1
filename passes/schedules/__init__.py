"""Schedulers: which implementations a region can have on a target, what each costs, and where one overtakes another."""

from ringc.passes.schedules.candidates import candidates
from ringc.passes.schedules.model import Candidate, Rows, crossover
from ringc.passes.schedules.ranges import Version, versions_of

__all__ = ["Candidate", "Rows", "Version", "candidates", "crossover", "versions_of"]
