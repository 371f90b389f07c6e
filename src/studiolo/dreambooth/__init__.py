"""Teaching a subject from a handful of images (DreamBooth, arXiv 2208.12242)."""
