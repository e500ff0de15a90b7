"""Circuits: the graph of what writes to the residual stream and what reads it, how much each edge matters, and how faithful a part is."""
