"""Subjects: what is studied. A model, its examples, and the hook points where its activations are read and written."""
