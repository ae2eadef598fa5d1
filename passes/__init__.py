"""Passes: what is done to a graph between the front end and the code generators."""
