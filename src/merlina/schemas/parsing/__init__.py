"""Parse JSON text and stored configurations of earlier versions, and format validation errors as sentences."""
