"""Models whose input is a set of tokens: families with rungs, groups with attributes, constraints, and edits of contexts."""
