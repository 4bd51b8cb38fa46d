"""What happened: grading and summaries."""
