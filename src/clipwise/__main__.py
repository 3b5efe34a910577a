"""``python -m clipwise``"""

from clipwise.cli import main

if __name__ == "__main__":
    main()
