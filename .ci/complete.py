"""Exit with 0 when this interpreter has Paceline and every development requirement in a fitting version."""

import importlib.metadata as metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement

if not (Path(sys.executable).parent / "paceline").exists():
    sys.exit("paceline is not installed")
for line in metadata.requires("paceline") or []:
    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": "dev"}):
        continue
    if not requirement.specifier.contains(metadata.version(requirement.name), prereleases=True):
        sys.exit(f"{requirement} is not installed")
