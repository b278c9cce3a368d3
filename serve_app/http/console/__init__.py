"""The console: one page in a browser that shows which model answers and why, and sends requests to it."""
