"""Is it the subject, in the context asked for, and is the class still whole? Scores and reports."""
