"""Data set uploads: the multipart stream, the bounded number of concurrent uploads, and the files on disk."""
