"""Starts a local replacement of the Hugging Face Hub in the Python server of the documents, before its imports.

The environment variables that clients need to reach it are set, and written to the file `HUB` in the current folder.
"""

import io
import json
import os
import sys
from pathlib import Path
from threading import Thread

HUB = "hub.json"


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1] / "radfm"))
    from hub import Hub

    stand_in = Hub()
    environment = stand_in.environment(Path("home").absolute())
    os.environ.update(environment)  # before the import of the Hugging Face libraries, which read it only then
    stand_in.repos["organisation/name"] = {"data/train-00000-of-00001.parquet": pictures()}
    Thread(target=stand_in.serve_forever, daemon=True).start()
    Path(HUB).write_text(json.dumps(environment))


def pictures(side: int = 64, count: int = 20) -> bytes:
    """A Parquet file with a data set of labelled pictures."""
    import datasets
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    columns = {
        "image": [Image.fromarray(rng.integers(0, 255, (side, side), np.uint8)) for _ in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["Glioma", "Meningioma"])}
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(file)
    return file.getvalue()


if __name__ == "__main__":
    main()
