"""`python -m rpf_lightning.model` is `rpf summary`."""

from rpf_lightning.model.summary import main

main()
