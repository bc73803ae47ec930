"""The data doctor: examination of rows, and what its findings say."""
