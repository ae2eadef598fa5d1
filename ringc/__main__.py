"""`python -m ringc`."""

from ringc.cli import main

if __name__ == "__main__":
    main()
