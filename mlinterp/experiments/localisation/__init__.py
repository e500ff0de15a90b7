"""Where in a transformer an answer is carried, and by what way: types about prompt pairs."""
