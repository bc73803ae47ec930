"""The finished model of a run: saving, merging, its card and loading code, and the upload."""
