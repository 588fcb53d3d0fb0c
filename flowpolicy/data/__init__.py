"""Read and write dataset files, window, normalise, check."""
