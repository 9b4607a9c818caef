"""What setup.cfg cannot say: the top-level configs/ folder is shipped as the package data of ``stormlit.configs``."""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "stormlit.configs"],
    package_dir={"": "src", "stormlit.configs": "configs"},
    package_data={
        "": ["py.typed", "*.csv", "*.css", "*.html", "*.j2"],
        "stormlit.configs": ["**/*.yaml"],
    },
)
