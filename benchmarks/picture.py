"""A picture of a report page, as a browser shows it.

    lmr evaluate corpora/python-docs --encoder lstm-base --output reports/docs
    python benchmarks/picture.py reports/docs/report.html benchmarks/results/report.png

Needs Chromium (Debian's package `chromium`).
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import click

# nothing of the browser may reach for the network
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars"]


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--width", default=1200)
@click.option("--height", default=1500)
@click.option("--dark", is_flag=True, help="As at night.")
def main(page: Path, picture: Path, width: int, height: int, dark: bool) -> None:
    """Opens the page and takes its picture."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise click.ClickException("no Chromium found; install the package chromium")
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory() as profile:
        options = [*QUIET, *theme, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command = [browser, *options, f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
