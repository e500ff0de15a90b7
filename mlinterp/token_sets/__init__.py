"""What experiments on token sets share: a latent's activation on any context, the contexts at hand, edits of them, and effects."""
