"""Pages that people open: one HTML file that holds everything, of runs and records, or of a dataset."""
