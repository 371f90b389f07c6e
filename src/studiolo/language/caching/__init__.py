"""Not computing twice: contexts that many requests share, and answers to questions asked before."""
