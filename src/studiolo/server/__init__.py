"""Studiolo over HTTP, in the dialects of the Gemini and the OpenAI API."""
