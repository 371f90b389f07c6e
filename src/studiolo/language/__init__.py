"""Conversation in, tokens out."""

DEFAULT_MODEL = "smollm2"
"""What answers where no model is named."""
