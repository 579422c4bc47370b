"""The page of everything, and the blind test: files in, pages out."""
