"""Activations captured at hook points: the module that captures them, the files that hold them, the dataset that reads them."""
