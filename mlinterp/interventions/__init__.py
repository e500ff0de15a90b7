"""Interventions: policies that edit activations, the controls beside them, and what they do to the answer."""
