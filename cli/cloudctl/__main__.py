"""``python -m cloudctl``."""

from cloudctl.main import main

if __name__ == "__main__":
    main()
