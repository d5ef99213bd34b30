"""Objects in R2 or in local folders."""
