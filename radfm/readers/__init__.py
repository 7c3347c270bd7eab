"""Readers of image files, one module per family of formats. `read_case` calls them; libraries load on first use."""
