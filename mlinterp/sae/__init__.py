"""Sparse autoencoders: four architectures, their fit, what they reconstruct and what that does to behaviour, and their files."""
