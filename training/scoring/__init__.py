"""Bulk scoring: tables larger than memory through the served model, part by part, on all cores.

Only `pool` knows Ray. Read in this order: files, cuts, columns, results, worker, pool, plan, run.
"""
