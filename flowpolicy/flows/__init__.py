"""The mathematics of flow policies, one file per axis."""
