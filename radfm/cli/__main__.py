"""`python -m radfm.cli`, as `radfm`."""

from radfm.cli import main

main()
