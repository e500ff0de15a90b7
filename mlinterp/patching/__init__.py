"""Patching: what of one run is put into another, how it is run fast, and what it does to the answer."""
