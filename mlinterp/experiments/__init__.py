"""The experiment types, one file each: what a spec of that type may say, and the pure function that does it."""
