"""What `mlinterp.run` is made of: the session, inputs, publishing, and the two shapes of several runs (study, sweep)."""
