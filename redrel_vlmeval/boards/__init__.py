"""Every table of a sheet as a data frame with its captions, marks and notes; nothing here writes a file."""
