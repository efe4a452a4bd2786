"""`python -m medtransfer`."""

from medtransfer.cli import main

if __name__ == "__main__":
    main()
