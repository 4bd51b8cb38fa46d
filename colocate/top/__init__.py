"""`colocate top`: a run in progress on a terminal. Needs the extra `top`."""
