"""Remote code that a tiny InternVL checkpoint is saved with."""
