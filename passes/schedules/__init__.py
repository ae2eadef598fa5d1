"""Schedulers: which implementations a region can have on a target, what each costs, and where one overtakes another."""
