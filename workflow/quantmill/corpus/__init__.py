"""From parquet and text files to token chunks."""
