"""What decides: from a table to a published model, or to a reason why not."""
