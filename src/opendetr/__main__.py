"""`python -m opendetr` is the command `opendetr`."""

from opendetr.cli.main import main

if __name__ == "__main__":
    main()
