"""Training: text, diagnosis, finetune."""
