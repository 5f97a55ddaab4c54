"""`python -m edgeprofile`: the command line."""

from edgeprofile.cli import main

if __name__ == "__main__":
    main()
