"""Wire protocols: from the bytes of a request to a matrix, from scores to the bytes of a response."""
