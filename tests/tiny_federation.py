"""The configuration of a federation that trains in seconds."""

import json
from pathlib import Path

SIZE = 32  # pixels a side
ARCHITECTURE = {
    "vision_config": {"family": "resnet", "tower": "test_resnet", "image_size": SIZE},
    "scan_config": {"num_hidden_layers": 0},
    "case_config": {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "hidden_size": 32,
}


def write_config(folder: Path, text_encoder: Path, rounds: int, steps: int) -> Path:
    """Writes federated.yaml, which is JSON, and returns its path."""
    content = {
        "model": {"text_encoder": str(text_encoder), "frozen": "tower", "architecture": ARCHITECTURE},
        "objectives": {"weights": {"key_slice": 0}, "label_smoothing": 0},
        "sampling": {"slices_per_step": 16, "slices_per_scan": 1},
        "augmentation": {"drop_scans": 0},
        "training": {"bf16": False},
        "federation": {"rounds": rounds, "steps": steps},
    }
    file = folder / "federated.yaml"
    file.write_text(json.dumps(content))
    return file
