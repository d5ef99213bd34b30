"""For Beam's --setup_file, which takes nothing else; pyproject.toml has all there is to say."""

from setuptools import setup

setup()
