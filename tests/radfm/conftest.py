import site
import venv
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def python_without_radfm(tmp_path_factory) -> Path:
    """A second environment with this one's packages but radfm: an editable or installed radfm is left out."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    target = next(home.glob("lib/python*/site-packages"))
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir():
            name = entry.name.lower()
            if "radfm" not in name and not name.endswith(".pth") and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return home / "bin" / "python"
