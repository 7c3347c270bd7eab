"""The page of `radfm serve` as a Hugging Face Space."""

import os

from radfm.serve import serve

serve(
    os.environ.get("RADFM_MODEL", "radfm-phantom-mini"),
    host="0.0.0.0",
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
