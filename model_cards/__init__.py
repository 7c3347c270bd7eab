"""The templates of model cards, and the cards of the checkpoints that radfm ships; see `radfm.publishing.card`."""
