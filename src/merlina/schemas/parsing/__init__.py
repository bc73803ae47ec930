"""From text to values: JSON text, stored configurations of earlier versions, and validation errors as sentences."""
