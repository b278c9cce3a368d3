"""Files to columns: the reader of CSV and Parquet for training and for scoring."""
