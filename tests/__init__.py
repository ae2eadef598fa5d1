"""Tests of ringc."""
