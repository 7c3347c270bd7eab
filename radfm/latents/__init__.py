"""Latents: the pictures of an autoencoder's latent space, and generators of new ones. See docs/synthesis.md."""

from radfm.latents.autoencoders import Autoencoder

__all__ = ["Autoencoder"]
