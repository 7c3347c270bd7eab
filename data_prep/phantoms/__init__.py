"""Phantoms: synthetic patients with known masks, for the demo, tests and studies. See docs/phantoms.md."""

from radfm.data_prep.phantoms.disorders import Disorder, disorders
from radfm.data_prep.phantoms.phantom import Phantom, anatomy_of, make_case

__all__ = ["Disorder", "Phantom", "anatomy_of", "disorders", "make_case"]
