"""Pictures from prompts: the model to draw with, provenance, contact sheets."""
