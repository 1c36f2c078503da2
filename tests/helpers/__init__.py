"""What several layers of tests share."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
SYSTEM_DAGS = ROOT / "tests" / "system" / "dags"
