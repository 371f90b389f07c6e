"""The mathematics: tensors in, tensors out. No files, no Lightning, no HTTP."""
