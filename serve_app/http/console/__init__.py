"""The console: one page in a browser that says which model answers and why, and tries it."""
