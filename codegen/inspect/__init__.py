"""Reading what a compiler made: resources of a binary, occupancy, the roofline; tables.py prints it."""
