"""`python -m raftha`: the same as the command `raftha`."""

from raftha.cli import main

if __name__ == "__main__":
    main()
