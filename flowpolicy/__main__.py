"""``python -m flowpolicy``."""

from flowpolicy.cli import main

if __name__ == "__main__":
    main()
