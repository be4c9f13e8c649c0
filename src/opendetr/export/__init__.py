"""Writing a detector for other libraries, and uploading it."""
