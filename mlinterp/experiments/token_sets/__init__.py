"""Experiments on models whose input is a set of tokens: what a latent responds to, observed and intervened."""
