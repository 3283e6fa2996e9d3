"""Refuses to build when the rooms mounted by symbolic links are not there.

Everything else about the build stands in pyproject.toml.  A clone without symbolic links (Git on
Windows, some archives) holds small text files in their place, and setuptools would go on and make
a wheel without kernels.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

ROOMS = ("autotune", "kernels", "parallel", "reference", "tuning_db")

missing = [room for room in ROOMS if not Path(__file__).parent.joinpath("kdsl", room).is_dir()]
if missing:
    raise SystemExit(
        f"cannot build kdsl: {', '.join(f'kdsl/{room}' for room in missing)} must be a folder or a"
        " symbolic link to one.\n"
        "This checkout was made without symbolic links. Clone again with\n"
        "  git clone -c core.symlinks=true <repository>\n"
        "or put the links back in place with\n"
        "  git config core.symlinks true && git checkout -- kdsl"
    )

setup()
