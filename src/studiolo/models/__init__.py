"""The registry: which models there are and where their weights lie."""
