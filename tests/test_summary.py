"""No figure in the README was typed by hand."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_and_summary_are_what_the_result_files_give():
    command = [sys.executable, "-m", "benchmarks.summary", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
