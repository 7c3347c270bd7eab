"""Makes serve.webp, a screenshot of `radfm serve` with one of the example studies.

python docs/figures/serve.py          # needs chromium and chromedriver
"""

import io
import shutil
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

from radfm import checkpoints, examples
from radfm.serve import Limits
from radfm.serve.server import launch, open_studies

STUDY = "covid"  # four radiographs
TYPED_NAMES = "Pulmonary tuberculosis; fracture of rib"
SIZE = (1280, 860)


def main() -> None:
    studies = open_studies(checkpoints.DEFAULT, Limits(seconds=600))
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "force-device-scale-factor=1.5"):
        options.add_argument(f"--{argument}")
    options.binary_location = shutil.which("chromium")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        url = launch(studies, "127.0.0.1", 7861).url
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1.5, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        shown = screenshot(browser, url)
        Image.open(io.BytesIO(shown)).convert("RGB").save(Path(__file__).with_suffix(".webp"), quality=82, method=6)
    finally:
        browser.quit()
        studies.close()


def screenshot(browser, url: str) -> bytes:
    browser.get(url)
    browser.find_element("xpath", f"//button[.='{examples.about(STUDY).title}']").click()
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
