"""Makes serve.webp, a screenshot of `radfm serve` with a synthetic knee of `radfm.data_prep.phantoms`.

python docs/figures/serve.py          # needs chromium and chromedriver
"""

import io
import shutil
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from selenium import webdriver

from radfm.cases import Scan
from radfm.data_prep.phantoms.phantom import make_case
from radfm.serve import Limits
from radfm.serve.server import launch, open_studies

KNEE = {"seed": 11, "index": 7001, "cases": 8000, "size": 192}  # osteoarthritis, a torn meniscus and an effusion
TYPED_NAMES = "Segond fracture; tear of lateral meniscus"
SIZE = (1280, 860)


def main() -> None:
    studies = open_studies("radfm-phantom-mini", Limits(seconds=600))
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "force-device-scale-factor=1.5"):
        options.add_argument(f"--{argument}")
    options.binary_location = shutil.which("chromium")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        url = launch(studies, "127.0.0.1", 7861).url
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1.5, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        with tempfile.TemporaryDirectory() as folder:
            shown = screenshot(browser, url, write_knee(Path(folder)))
        Image.open(io.BytesIO(shown)).convert("RGB").save(Path(__file__).with_suffix(".webp"), quality=82, method=6)
    finally:
        browser.quit()
        studies.close()


def write_knee(folder: Path) -> list[str]:
    files = []
    for number, scan in enumerate(make_case(**KNEE).case.scans):
        files.append(str(folder / f"{number}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(scan.pixels.transpose(2, 1, 0).astype(np.float32), affine(scan)), files[-1])
    return files


def affine(scan: Scan) -> np.ndarray:
    """The affine of a scan in RAS coordinates, with columns, rows and slices in the order of `radfm.readers`."""
    between, row_mm, column_mm = scan.spacing_mm
    axes = {
        "axial": ((-column_mm, 0, 0), (0, -row_mm, 0), (0, 0, between)),
        "coronal": ((-column_mm, 0, 0), (0, 0, -row_mm), (0, -between, 0)),
        "sagittal": ((0, -column_mm, 0), (0, 0, -row_mm), (-between, 0, 0)),
    }
    matrix = np.eye(4)
    matrix[:3, :3] = np.transpose(axes[scan.plane])
    return matrix


def screenshot(browser, url: str, files: list[str]) -> bytes:
    browser.get(url)
    browser.find_element("id", "modality").send_keys("MRI")
    browser.find_element("id", "files").send_keys("\n".join(files))
    until(lambda: browser.find_element("tag name", "body").get_attribute("data-state") == "study")
    browser.find_element("id", "name").send_keys(f"{TYPED_NAMES}\n")
    until(lambda: browser.find_elements("css selector", "#typed li"))
    browser.find_element("css selector", "#diagnoses .badges button").click()  # show on the images
    browser.execute_script("document.activeElement.blur()")
    time.sleep(5)  # until the map and the sheets are loaded
    return browser.get_screenshot_as_png()


def until(condition) -> None:
    """Waits until the condition is true."""
    end = time.monotonic() + 600
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the page did not answer")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
