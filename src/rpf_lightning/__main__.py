"""`python -m rpf_lightning` is `rpf`."""

from rpf_lightning.cli import main

main()
