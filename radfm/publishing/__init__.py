"""Publishing a checkpoint on the Hugging Face Hub: what is checked, what is written, its card."""
