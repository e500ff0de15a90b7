"""Readouts: what a model that nobody touches writes, attends to and would already answer."""
