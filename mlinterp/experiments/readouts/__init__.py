"""What a transformer writes and looks at, unedited: types about prompts or examples."""
