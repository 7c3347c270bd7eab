"""From hospital files to a case data set."""
