"""`python -m trainer` is the console command `trainer`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
