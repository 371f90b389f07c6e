"""Thresholds of harm: prompts and answers are judged by a classifier, and withheld from a threshold on."""
