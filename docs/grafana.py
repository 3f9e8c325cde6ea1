"""Write docs/grafana.json, the dashboard that `deploy` puts beside a server, too.

    python docs/grafana.py [--check]

Import the file in Grafana (Dashboards, New, Import) and choose the Prometheus data source that
scrapes Triton's metrics port.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from minitron_trt.deploy.dashboard import dashboard

TARGET: Final = Path(__file__).with_name("grafana.json")


def main() -> None:
    """Write the file, or with --check say whether it is what this script writes."""
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text)
    elif not TARGET.is_file() or TARGET.read_text() != text:
        sys.exit("docs/grafana.json is out of date; run make docs")


if __name__ == "__main__":
    main()
