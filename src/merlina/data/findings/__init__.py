"""Examination of rows: what counts as a finding, and what its message says."""
