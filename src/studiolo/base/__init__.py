"""The embedded base model: its weights, card, and the recipe that made it."""
