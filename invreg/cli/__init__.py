"""How is an audit made without writing Python?"""

from invreg.cli.command import main

__all__ = ["main"]
