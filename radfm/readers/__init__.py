"""One reader for each family of files. `radfm.cases.read_case` is the only door; the libraries load on first need."""
