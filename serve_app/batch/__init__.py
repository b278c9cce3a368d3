"""Bulk scoring of tables that are larger than memory."""
