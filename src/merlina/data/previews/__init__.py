"""Previews: some rows of a data set as they are stored and as formatted text, without reading those that follow."""
