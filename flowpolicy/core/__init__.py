"""The cellar: batch keys, specs and contracts, errors, random streams, whole-or-absent files."""
