"""Wire protocols: from the bytes of a request to a matrix, and from scores to the bytes of a response."""
